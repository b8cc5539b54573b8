"""What a run's event files tell, as one story: who did what when, what went wrong, and how long it took to mend.

Events go in (`gather`), a `Run` of bounded size comes out (`run`), and is written down as a page (`page`) or as a
trace (`trace`). Nothing is decided by any of it, and nothing that stands in an event is believed or executed.
"""
