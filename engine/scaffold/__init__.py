"""`convoy init`: writes a small project that trains at once, from templates."""
