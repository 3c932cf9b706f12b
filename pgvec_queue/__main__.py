"""``python -m pgvec_queue`` is the program ``pgvec``."""

from pgvec_queue.cli import main

if __name__ == "__main__":
    main()
