"""Folders that are whole or absent, here and at URLs."""

from cocomix.artifacts.arrays import mapped_array
from cocomix.artifacts.artifact import Artifact, open_artifact, verify
from cocomix.artifacts.faults import (
    AlreadyExists,
    BeingWritten,
    Damaged,
    MadeFromSomethingElse,
    NotAnArtifact,
    OutsideFolder,
    Unreachable,
    WrongKind,
    WrongVersion,
)
from cocomix.artifacts.file_cache import FileCache
from cocomix.artifacts.files import (
    explained_full_disk,
    file_sha256,
    fingerprint_json,
    read_json,
    tensor_sha256,
    write_json,
    write_text,
    written_aside,
)
from cocomix.artifacts.findings import Findings
from cocomix.artifacts.lock import locked, process_lives, this_process
from cocomix.artifacts.manifests import MANIFEST, FileEntry, Manifest, file_entry
from cocomix.artifacts.staging import PLAN, Staging, partial_path, seal, whole_folder
from cocomix.artifacts.store import (
    RemoteFolder,
    cache_folder,
    explained,
    file_system,
    is_there,
    require_local,
    retried,
    shown,
    url_of,
)

__all__ = [
    "MANIFEST",
    "PLAN",
    "AlreadyExists",
    "Artifact",
    "BeingWritten",
    "Damaged",
    "FileCache",
    "FileEntry",
    "Findings",
    "MadeFromSomethingElse",
    "Manifest",
    "NotAnArtifact",
    "OutsideFolder",
    "RemoteFolder",
    "Staging",
    "Unreachable",
    "WrongKind",
    "WrongVersion",
    "cache_folder",
    "explained",
    "explained_full_disk",
    "file_entry",
    "file_sha256",
    "file_system",
    "fingerprint_json",
    "is_there",
    "locked",
    "mapped_array",
    "open_artifact",
    "partial_path",
    "process_lives",
    "read_json",
    "require_local",
    "retried",
    "seal",
    "shown",
    "tensor_sha256",
    "this_process",
    "url_of",
    "verify",
    "whole_folder",
    "write_json",
    "write_text",
    "written_aside",
]
