"""A folder of runs as web pages: `evalkit view`. Its own pages read the folder and change nothing.

The way of a request: `server` (sockets, the standard library's HTTP server: pages for one person
need no other) makes a `routes.Request` of it, `guard` decides whether it is answered at all,
`routes` finds the page, `app` composes the page from `folder` (which runs there are, and nothing
outside), `live` (what a run has played so far, each line of it read once), `reports` (the page of
`evalkit.show.html`, which stands in a frame and is exchanged when the run has grown) and `pages`,
`index`, `episodes` (all other HTML).

More pages are routes given to `app.View`. The debugger's (`evalkit.debug.page`) play episodes, ask
models, and write a fork beside the run when "Save as a run" is pressed:

    from evalkit.view.app import View
    from evalkit.view.pages import page
    from evalkit.view.routes import Request, Response, Route

    def start(request: Request, names: Mapping[str, str]) -> Response:
        run = view.folder.run(names["run"])         # NotFound where it is not one of the folder
        # `body` is HTML: what a model wrote passes through `evalkit.show.html.markup.esc`
        return Response.html(page("title", body, nav=[("Runs", "/")], script="debug.js"))

    view = View(Path("results"))
    view.add(Route("GET", "/debug/{run}", start), Route("POST", "/api/debug/{run}/turns", turn))

`commands/view.py` is where they are added. `{name}` matches one segment and comes unquoted. The
guard stands before added routes as before the others: a POST must come from a page of this server
and be JSON (`request.json()`). Scripts and styles are files in `assets/`, served as `/assets/NAME`:
the policy allows nothing inline. What a page raises of `EvalkitError` becomes a page, or JSON below
`/api/`, with its message.
"""
