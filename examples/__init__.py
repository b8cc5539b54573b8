"""Examples that run: a whole job in small (demo), and recipes for other trainers (recipes)."""
