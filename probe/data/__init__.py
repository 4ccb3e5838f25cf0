"""What is asked: samples, images, chat template, token types, patch grids, files."""
