"""Several processes that hold one model's shares, as MLX's own launcher starts them."""
