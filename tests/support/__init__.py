"""What tests share: references of the families, tiny checkpoints, servers, damage."""
