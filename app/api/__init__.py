"""The JSON API, /api/v1: a module for each noun adds its routes to `bp`; app.api.routes names all.

Routes parse, call and answer. Bodies and query strings are read by app.api.routing, errors become
problem+json in app.errors and app.api.problems, and the OpenAPI document is generated from the
models in app.actions.inputs and app.api.answers.
"""

from flask import Flask

from app import models
from app.api import routing
from app.api.routing import ApiBlueprint, problem_response
from app.server import portal

bp = ApiBlueprint(
    "api",
    __name__,
    url_prefix="/api/v1",
    abp_responses={
        "400": problem_response("No JSON, or a Host that is not ours"),
        "401": problem_response("No credentials"),
        "403": problem_response("Not allowed"),
        "404": problem_response("No such address or command"),
        "409": problem_response("The state does not allow this now"),
        "413": problem_response("Too large"),
        "415": problem_response("The body is not application/json"),
        "422": problem_response("Values that are not valid"),
        "429": problem_response("Too many requests"),
        "503": problem_response("The database cannot be reached"),
        "504": problem_response("The database did not answer in time"),
    },
)


def init_app(app: Flask) -> None:
    """Open the way to the database, and teach the router how ids are spelt."""
    app.url_map.converters.update(routing.CONVERTERS)
    portal.init_app(app)
    models.init_app(app)
    openapi.describe(app)


# It imports the modules with the routes, which import `bp`, so it comes last.
from app.api import openapi, routes  # noqa: E402, F401
