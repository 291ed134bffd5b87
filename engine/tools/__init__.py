"""Tools: what a model may call, the calls in its answers, and what came of them."""
