"""The main job in small: `python -m examples.demo.main`; see main.py for the story that it tells."""
