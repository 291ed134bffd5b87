"""Messages and images, by chat templates, become prompts."""
