"""The HTTP face: texts in, answers out, and a page to watch. Needs the extra ``gateway`` (FastAPI, uvicorn).

Thin: whatever it does is done by the same queue, vectorizers and search as on the command line. It holds no state that
is not in the database, so any number of gateways may serve the same one.
"""
