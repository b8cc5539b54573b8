"""The command line: `holdfast …`. Each command is a typed function; tables for people, `--json` for programs."""
