"""What a backfill would mean, before anything is done: see ``estimator``.

Its parts are imported one by one: those that know how tables and graphs are laid out are wanted elsewhere, too.
"""
