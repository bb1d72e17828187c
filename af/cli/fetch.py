"""Fetch files of other people's models, verified by SHA-256; a stopped download goes on where it was.

  af fetch                    what there is, with sizes and licences, and where each file lies
  af fetch face-landmarker

Files go to avatar-forcing/models in the user's cache folder (XDG_CACHE_HOME). They are looked for in the folder AF_MODELS,
too, where a machine without a network can have them.
"""

from __future__ import annotations

from typing import Annotated

from af.cli.options import More
from af.data.model_files import MODEL_FILES, fetch

#: Message after Ctrl-C.
WHEN_INTERRUPTED = "what was fetched is kept, and the same command continues"


def run(
    names: Annotated[list[str], More(nargs="*", choices=[[], *MODEL_FILES], metavar="NAME"), ", ".join(MODEL_FILES)],
) -> None:
    """Fetch the files named, or list them."""
    from af.console import progress_bar

    for name in names or MODEL_FILES:
        model = MODEL_FILES[name]
        if names:
            with progress_bar() as bar:
                task = bar.add_task(f"fetching {model.file}", total=model.size)
                print(fetch(model, lambda done: bar.update(task, completed=done)))  # noqa: B023 (called at once)
        else:
            where = model.find() or "not fetched"
            print(f"{name}: {model.use}; {model.size / 1e6:.1f} MB, {model.licence}; {model.url}; {where}")
