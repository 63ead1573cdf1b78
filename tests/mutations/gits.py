"""Git itself, used by somebody else in the same working directory."""

from __future__ import annotations

from mutations.technique import By, Technique, Unnamed

#: Git's own state has no writers on record.
NOTHING = Unnamed("no tracked file is touched; git's own state has no writers on record")
_MOVED = (By.CONTENT, By.EVENT, By.HEAD)

TECHNIQUES = (
    Technique("git checkout of a file", "git checkout -q other -- train.py", "git"),
    Technique("git restore", "git restore -s other train.py", "git"),
    Technique(
        "git apply", 'git diff main other > "$OUT/p"\ngit apply "$OUT/p"', "git"
    ),
    Technique(
        "git stash pop",
        "git stash pop -q",
        "git",
        setup="sed -i s/0.5/0.1/ train.py\ngit stash -q",
    ),
    Technique("git checkout of a branch", "git checkout -q other", "git", found=_MOVED),
    Technique("git reset --hard", "git reset -q --hard other", "git", found=_MOVED),
    Technique("git merge", "git merge -q other", "git", found=_MOVED),
    Technique("git cherry-pick", "git cherry-pick other", "git", found=_MOVED),
    Technique("git rm", "git rm -q train.py", "git"),
    Technique("git mv", "git mv train.py moved.py", "git"),
    Technique(
        "git sparse-checkout takes it away", "git sparse-checkout set nothing", "git",
        path=b"pkg/deep/model.py", found=(By.EVENT, By.CONFIGURATION, By.INDEX),
    ),
    Technique(
        "git update-ref moves the branch", "git update-ref refs/heads/main other", NOTHING,
        found=(By.HEAD,),
    ),
    Technique(
        "the branch moved in packed-refs",
        'sed -i "s/^[0-9a-f]* refs.heads.main$/$(git rev-parse other) refs\\/heads\\/main/" .git/packed-refs',
        NOTHING, found=(By.HEAD, By.REFS), setup="git pack-refs --all",
    ),
    Technique(
        "git symbolic-ref moves HEAD", "git symbolic-ref HEAD refs/heads/other", NOTHING,
        found=(By.HEAD,),
    ),
    Technique(
        "a commit of somebody else", "git commit -q --allow-empty -m theirs", NOTHING,
        found=(By.HEAD,),
    ),
    Technique(
        "HEAD detached by hand", 'git rev-parse other > "$OUT/id"\ncp "$OUT/id" .git/HEAD', NOTHING, found=(By.HEAD,)
    ),
)  # fmt: skip
