"""The process for foreign code: it renders chat templates and compiles grammars."""

from router.grammar import checker, compiling
from router.processes import work_for_router
from router.text import rendering

WORKERS = {
    rendering.NAME: rendering.rendered,
    checker.NAME: compiling.compiled,
    checker.SCHEMAS_NAME: compiling.compiled_schemas,
}


if __name__ == "__main__":
    work_for_router(WORKERS)
