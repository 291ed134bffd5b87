"""Drafts: what an answer may go on with, guessed cheaply and checked by the model, many at once."""
