"""The upload: dry by default, private first, and compared with what arrived.

The hub's own client does the work: retries, hashes and large files.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, constants, get_token
from huggingface_hub.errors import HfHubHTTPError

from course_utils.publishing.explain import ask
from course_utils.publishing.folder import CARD, ready

AGAIN = (
    "What has arrived stays there: call this again with into_existing=True, and only "
    "what is missing is sent."
)


@dataclass(frozen=True)
class Upload:
    """What goes, or went, to the hub.

    files: {name: bytes}. left: names that stay here. commit: the hub's id of what was
    sent, None for a dry run. url: where it is, or would be; always private.
    """

    repo_id: str
    files: dict[str, int]
    left: tuple[str, ...]
    url: str
    commit: str | None = None

    @property
    def sent(self) -> bool:
        return self.commit is not None

    @property
    def total_bytes(self) -> int:
        return sum(self.files.values())

    def __str__(self) -> str:
        verb = "sent to" if self.sent else "dry run, would be sent to"
        lines = [f"{verb} {self.url} (private):"]
        lines += [f"  {size:14,} bytes  {name}" for name, size in self.files.items()]
        count = len(self.files)
        lines.append(f"  {self.total_bytes:14,} bytes  in all, {count} files")
        lines += [f"  {'stays here':>20s}  {name}" for name in self.left]
        if self.sent:
            lines.append(f"commit {self.commit}: the hub's hashes equal the local ones")
            lines.append("Look at it there; its settings page can make it public.")
        return "\n".join(lines)


def upload(
    folder: str | Path, send: bool = False, into_existing: bool = False
) -> Upload:
    """Send a finished folder to the hub; by default only say what would be sent.

    folder: with the merged model, its tokenizer, the release gate's record, and what
        `write_card` wrote; the name comes from its results.
    send: really send, into a private repository, with the token that huggingface_hub
        finds (HF_TOKEN, Colab's secrets, or `hf auth login`), which is never printed.
    into_existing: go on if the repository is there: to resume, or to replace files.
    Returns: Upload; if sent, the hub's hashes of all files were compared.
    Raises: as `folder.ready`; PermissionError without a token or with one that the hub
    refuses; FileExistsError saying what is there if the repository exists, or if it is
    public; ConnectionError without network or after a cut, saying how to go on.
    """
    folder = Path(folder)
    results, files, left = ready(folder)
    name = results["name"]
    plan = Upload(name, files, left, f"{constants.ENDPOINT}/{name}")
    if not send:
        return plan
    if "/" not in name:
        raise ValueError(f"{name!r} names no owner: write it as your-user-name/{name}.")
    api = _client()
    if ask(lambda: _create(api, name), name, api.token):
        _require_consent(api, plan, folder, into_existing)
    commit, compared = ask(lambda: _send(api, plan, folder), name, api.token, AGAIN)
    wrong = {mismatch["path"] for mismatch in compared.mismatches}
    wrong = sorted(set(files) & (wrong | set(compared.extra_paths)))
    if wrong:
        raise ValueError(
            f"The hub's copy of {', '.join(wrong)} differs from this folder's. Did the "
            "files change during the upload? Run the release gate and this again."
        )
    return replace(plan, commit=commit)


def _client():
    token = get_token()
    if not token:
        raise PermissionError(
            "There is no token. Set HF_TOKEN to one with write access (on Colab: a "
            "secret of that name), or log in with `hf auth login`."
        )
    return HfApi(token=token, library_name="orpo-course")


def _create(api, name):
    """Create a private repository; True if there was one already."""
    try:
        api.create_repo(name, private=True)
    except HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
        return True
    return False


def _send(api, plan, folder):
    """(commit, the comparison of the hub's hashes with the local files)."""
    ModelCard.load(folder / CARD).validate()  # by the hub itself, before 16 GB go
    done = api.upload_folder(
        repo_id=plan.repo_id,
        folder_path=folder,
        allow_patterns=list(plan.files),
        commit_message="Upload the model, its card and its proof",
    )
    return done.oid, api.verify_repo_checksums(
        plan.repo_id, local_dir=folder, revision=done.oid
    )


def _require_consent(api, plan, folder, into_existing):
    """Go on into a repository that exists only if asked to, and if it is private."""
    name = plan.repo_id
    info = ask(lambda: api.model_info(name, files_metadata=True), name, api.token)
    compared = ask(
        lambda: api.verify_repo_checksums(name, local_dir=folder), name, api.token
    )
    there = {file.rfilename: file.size or 0 for file in info.siblings}
    differ = sorted({m["path"] for m in compared.mismatches} & set(plan.files))
    same = sorted(set(there) & set(plan.files) - set(differ))
    kind = "private" if info.private else "PUBLIC"
    size = sum(there.values()) / 1e3
    about = (
        f"{name} exists already: {kind}, {len(there)} files, {size:,.1f} kB, last "
        f"changed {info.last_modified:%Y-%m-%d}. Of the {len(plan.files)} files here "
        f"it holds {len(same)} unchanged"
        + (f"; it would lose its own {', '.join(differ)}" if differ else "")
        + ". Nothing was sent."
    )
    if not info.private:
        raise FileExistsError(
            f"{about} A model goes into a private repository first, to be looked at: "
            "make this one private on its settings page, or choose another name."
        )
    if not into_existing:
        raise FileExistsError(
            f"{about} To go on into it, call upload(folder, send=True, "
            "into_existing=True); else choose another name."
        )
