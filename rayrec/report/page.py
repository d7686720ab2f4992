"""HTML pages from the templates of this package: no script, no network, and every text from data is escaped."""

from typing import Any

from rayrec.report import rows


def render(template: str, **values: Any) -> str:
    """Return the page of a file in ``templates``."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rayrec.report", "templates"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {name: value for name, value in vars(rows).items() if callable(value)}
    environment.filters["label"] = rows.label
    environment.filters["value_of"] = lambda name, values: values.get(name)
    return environment.get_template(template).render(values)
