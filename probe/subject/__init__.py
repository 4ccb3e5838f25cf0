"""A model with its processor: load, encode, generate, chat, and the prefix questions share."""
