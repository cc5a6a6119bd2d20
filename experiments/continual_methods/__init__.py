"""Methods of continual learning that the commands compare, and how a stream is run and reported."""
