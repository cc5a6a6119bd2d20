"""Commands of continual learning, each a module with a function `main`."""
