"""Pictures for whoever asks over HTTP, and the page that does: `safelight serve`.

Map of the room, from the door inwards:

    guard.py     who may come in: hosts, origins, tokens, sizes; nothing else is answered
    routes.py    what can be asked for: a route for each task, made from the same annotations as its command
    openai.py    the same for programs that were written for OpenAI's pictures
    a1111.py     and for programs that were written for AUTOMATIC1111's web API
    forms.py     a request in JSON -> keywords of a task, and what a page needs to know to ask
    jobs.py      the queue: every job has an id, a place, progress, previews, an end; and can be stopped
    darkroom.py  the worker that loads models and draws, one job after the other
    gallery.py   the folder of pictures, which is all the memory there is
    page/        the page: three files as they are, without a build; it knows no more than the routes tell

It needs the extra `server` (FastAPI and Uvicorn); the rest of the package imports none of it.
"""
