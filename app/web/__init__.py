"""The pages. A module for each page family adds its views to `bp`; app.web.routes names them all.

A page and its live refresh come from one view: see rendering.render_page.
"""

from flask import Blueprint, Flask

from app.server import access, identity
from app.web import addresses, formats, limits, navigation, remembered, rendering, vocabulary

bp = Blueprint("web", __name__)
bp.before_request(addresses.to_the_one_spelling)
bp.after_request(remembered.keep_few_messages)


def init_app(app: Flask) -> None:
    """Give the templates their filters and globals."""
    app.url_map.converters["uuid"] = addresses.IdConverter
    app.jinja_env.context_class = rendering.LazyContext
    app.jinja_env.filters.update(formats.FILTERS)
    app.jinja_env.finalize = formats.shown
    app.jinja_env.globals.update(
        STATUSES=vocabulary.STATUSES,
        EVENTS=vocabulary.EVENTS,
        status_of=vocabulary.status_of,
        event_of=vocabulary.event_of,
        explained=vocabulary.explained,
        has_tooltips=vocabulary.has_tooltips,
        limits=limits.LIMITS,
        navigation=navigation.groups,
        current_theme=remembered.current_theme,
        current_operator=remembered.current_operator,
        current_identity=identity.current_identity,
        may_look=access.may_look,
        may_operate=access.may_operate,
        sign_in_required=identity.is_required,
        OPERATORS_ONLY=access.OPERATORS_ONLY,
        live_url=rendering.live_url,
        url_with=rendering.url_with,
    )


# It imports the modules with the pages, which import `bp`, so it comes last.
from app.web import routes  # noqa: E402, F401
