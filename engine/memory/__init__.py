"""What is kept between requests, in memory and on disk."""
