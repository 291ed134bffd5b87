"""OpenAI's Responses: `/v1/responses`, on the same core as Chat Completions and beside them.

`schemas` and `items` are what a request may say, `reading` makes a conversation of it, `writing`
tells an answer as items and events, `memory` keeps responses that later ones go on from, and
`routes` has it all answered.
"""
