"""What a run is like now, told from the ends of its event files; `story` tells all that ever happened.

`tails` reads a bounded part of the files, newest first; `fold` makes a `RunNow` of it, purely. Events are for people:
nothing is decided by what stands here, and nobody's word is taken for more than that. A process that says nothing is
told from one that is gone by its file's time of change, compared with other files' of the same storage only.
"""
