"""`pgvec dashboard`: what the queue does, live on a terminal, and a few keys to steer it.

``watcher`` asks the database in a thread of its own and holds the one connection; ``snapshot`` is what it reads.
``screen`` turns that into lines for a window of any size, and does nothing else; ``terminal`` puts them there and
leaves the terminal as it was; ``keys`` reads keys; ``app`` is the loop over all of these.
"""
