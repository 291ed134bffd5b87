"""Vision add-ons: pictures become rows in the embedding space of a text decoder.

`base` says what an add-on is, `registry` which there are, `testing` checks one; the other modules
are the families that come along, and what they share.
"""
