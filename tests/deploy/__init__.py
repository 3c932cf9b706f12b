"""What is in ``deploy/``, each file by the tool that it is for, and ``pgvec service``."""
