"""Uploading to the hub."""

from pathlib import Path


def upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
) -> None:
    """Put the files of `folder` into a model repository of the hub, which is made where there is none.

    Args:
        repo_id: "organisation/name", or a name in the namespace of the token's owner.
        private: whether a repository that is made is private; by default what the namespace has as its own.
        token: of the hub; by default the one logged in with.
        revision: branch, made where there is none; by default the main one.
        create_pr: propose the commit as a pull request.
        commit_message, commit_description: what the commit is called, and more of it.
    """
    from huggingface_hub import HfApi

    hub = HfApi(token=token)
    repo_id = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/pr/"):
        hub.create_branch(repo_id, branch=revision, exist_ok=True)
    hub.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message,
        commit_description=commit_description,
    )
