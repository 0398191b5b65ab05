"""A double of the Hugging Face Hub on loopback, for the real huggingface_hub client to push to and download from.

    with HubServer(users={"hf_writetoken": {"name": "ada", "role": "write", "orgs": ["team"]}}) as server:
        HfApi(endpoint=server.endpoint, token="hf_writetoken").upload_folder(repo_id="ada/model", folder_path=folder)
        assert "config.json" in server.repos["models/ada/model"].files

Requests and replies follow huggingface_hub 2.4.0. Repos are kept in memory and end with the process. Xet (the client does not
use it with `HF_HUB_DISABLE_XET=1`), pull requests, tags, Spaces and search are not implemented, and answered with status 501. A
list is always one page, .gitignore is not read, and the YAML of a card is only checked for a tab that indents a line.
"""

import base64
import contextlib
import copy
import hashlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from fnmatch import fnmatch
from functools import cached_property, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote

from support.hub_faults import Ending, Fault, Reply, reset

# As on the Hub, files are stored in LFS by their name (.gitattributes) or by their size
LFS_PATTERNS = (
    *("*.bin", "*.ckpt", "*.gz", "*.h5", "*.model", "*.msgpack", "*.npy", "*.onnx", "*.parquet"),
    *("*.pkl", "*.pt", "*.pth", "*.safetensors", "*.zip", "*tfevents*"),
)
LFS_MIN_BYTES = 10_000_000


class HubError(Exception):
    """An error reply. `code` decides which exception the client raises: RepoNotFound, EntryNotFound or RevisionNotFound."""

    def __init__(self, status: int, message: str, *, code: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        header_message = message.encode("ascii", "backslashreplace").decode()
        all_headers = {"X-Error-Message": header_message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self.reply = answer({"error": message}, status=status, headers=all_headers)


@dataclass(frozen=True, kw_only=True)
class User:
    """The owner of a token. `orgs` maps an organisation to the role in it: admin, write, contributor or read."""

    name: str
    role: str
    orgs: Mapping[str, str]

    def may_read(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.orgs

    def may_write(self, namespace: str) -> bool:
        is_writer = namespace == self.name or self.orgs.get(namespace, "read") != "read"
        return self.role == "write" and is_writer


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """The content of one file of a commit. `is_lfs` decides which of the two hashes is its etag."""

    content: bytes
    is_lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def blob_id(self) -> str:
        """The hash that git computes: of the content, or of the pointer to an LFS file."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        blob = pointer.encode() if self.is_lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    @property
    def etag(self) -> str:
        """The hash that the client compares with that of its local file."""
        return self.sha256 if self.is_lfs else self.blob_id


@dataclass(frozen=True, kw_only=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: Mapping[str, StoredFile]


@dataclass(kw_only=True)
class Repo:
    """A repo. `files` and `commits` (newest first) are those of main. It is created with a first commit, as on the Hub."""

    kind: str  # "models" or "datasets"
    name: str  # namespace/name
    private: bool
    branches: dict[str, str] = field(default_factory=dict)  # name -> hash of its head
    history: dict[str, Commit] = field(default_factory=dict)  # hash -> commit
    lfs_objects: dict[str, bytes] = field(default_factory=dict)  # sha256 -> content, committed or not

    @property
    def namespace(self) -> str:
        return self.name.split("/")[0]

    @property
    def url_path(self) -> str:
        return self.name if self.kind == "models" else f"{self.kind}/{self.name}"

    @property
    def files(self) -> dict[str, bytes]:
        return {path: file.content for path, file in self.find_commit("main").files.items()}

    @property
    def commits(self) -> list[Commit]:
        return self.list_commits("main")

    def find_commit(self, revision: str) -> Commit:
        """Returns the commit of a branch or a full hash. Raises RevisionNotFound if there is none."""
        oid = self.branches.get(revision, revision)
        if oid not in self.history:
            raise HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        return self.history[oid]

    def list_commits(self, revision: str) -> list[Commit]:
        commits = [self.find_commit(revision)]
        while (parent := commits[-1].parent) is not None:
            commits.append(self.history[parent])
        return commits

    def add_commit(
        self, branch: str, files: Mapping[str, StoredFile], *, title: str, message: str, author: str
    ) -> Commit:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        parent = self.branches.get(branch)
        content = [self.name, len(self.history), parent, title, [(p, f.blob_id) for p, f in sorted(files.items())]]
        oid = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        commit = Commit(oid=oid, parent=parent, title=title, message=message, author=author, date=now, files=files)
        self.history[oid] = commit
        self.branches[branch] = oid
        return commit


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request as a route gets it. `groups` are the unquoted parts of the path, "" for one that is absent."""

    user: User | None
    groups: Mapping[str, str]
    query: Mapping[str, str]
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class HubServer:
    """The server. It listens on 127.0.0.1 within its `with` block, and closes all connections at the end.

    Attributes:
        users: The owner of each token. The argument has for each token a mapping of name, role ("write" or "read") and orgs, a
            list of names or a mapping of names to roles.
        repos: The repos by "models/ada/model" or "datasets/ada/data".
        requests: Method and path of all requests, paths as sent and without the query.
        faults: The faults that have not occurred yet (hub_faults.py).
        ended: Set when the server ends.
    """

    endpoint: str

    def __init__(self, *, users: Mapping[str, Mapping[str, Any]]) -> None:
        self.users: dict[str, User] = {}
        for token, user in users.items():
            orgs = user.get("orgs", ())
            roles = orgs if isinstance(orgs, Mapping) else dict.fromkeys(orgs, "write")
            self.users[token] = User(name=user["name"], role=user["role"], orgs=roles)
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.connections: set[socket.socket] = set()
        self.ended = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> "HubServer":
        self._http = Listener(("127.0.0.1", 0), partial(Connection, hub=self))
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.ended.set()
        self._http.shutdown()
        self._thread.join()
        # A kept-alive connection has its own thread, which would continue to answer
        for connection in list(self.connections):
            with contextlib.suppress(OSError):  # the client has left
                connection.shutdown(socket.SHUT_RDWR)
        self._http.server_close()

    def fail_next(
        self,
        method: str,
        path_regex: str,
        *,
        status: int = 500,
        times: float = 1,
        message: str = "A failure that the test requested",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answers the next `times` requests whose path matches `path_regex` with `status`, without carrying them out."""
        reply = HubError(status, message, headers=headers).reply
        self.disturb(Fault(method=method, path_regex=path_regex, times=times, reply=reply))

    def drop_next(self, method: str, path_regex: str, *, times: float = 1, ending: Ending = "close") -> None:
        """Carries out the next `times` requests whose path matches `path_regex`, and ends the connection without an answer."""
        self.disturb(Fault(method=method, path_regex=path_regex, times=times, effect="done", ending=ending))

    def disturb(self, fault: Fault) -> None:
        """Adds a fault."""
        self.faults.append(fault)

    def environment(self, token: str | None, home: Path) -> dict[str, str]:
        """Returns the environment of a new process that uses only this server, with its caches in `home`.

        The process has the rights of `token`. huggingface_hub reads these variables when it is imported, so they cannot be set
        later. Other settings of the Hub, offline mode and proxies of this process are removed.
        """
        removed = re.compile(r"HF_.*|HUGGING.*|.*_OFFLINE|.*_proxy", re.IGNORECASE)
        environment = {name: value for name, value in os.environ.items() if not removed.fullmatch(name)}
        environment |= {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home)}
        environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return environment | ({"HF_TOKEN": token} if token is not None else {})

    def reply_to(self, method: str, target: str, headers: Message, body: bytes) -> tuple[Reply, Fault | None]:
        """Carries out one request at a time, and returns the reply and the fault that it meets."""
        path, _, query = target.partition("?")
        with self._lock:
            self.requests.append((method, path))
            fault = self._take_fault(method, path)
            if fault is not None and fault.effect == "none":
                return fault.reply or Reply(), fault
            before = copy.deepcopy(self.repos) if fault is not None and fault.effect == "claimed" else None
            try:
                reply = self._route(method, path, query, headers, body)
            except HubError as error:
                reply = error.reply
            if before is not None:
                self.repos = before
            return reply, fault

    def _take_fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.method == method and re.search(fault.path_regex, path):
                fault.times -= 1
                if fault.times == 0:
                    self.faults.remove(fault)
                return fault
        return None

    def _route(self, method: str, path: str, query: str, headers: Message, body: bytes) -> Reply:
        token = headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.users:
            raise HubError(401, "Invalid credentials in Authorization header")
        for route_method, pattern, route in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and route_method == ("GET" if method == "HEAD" else method):
                groups = {name: unquote(text or "") for name, text in match.groupdict().items()}
                values = {name: texts[-1] for name, texts in parse_qs(query).items()}
                user = self.users.get(token)
                return route(self, Request(user=user, groups=groups, query=values, headers=headers, body=body))
        raise HubError(501, f"This double of the Hub does not answer {method} {path}")


class Listener(ThreadingHTTPServer):
    """Accepts connections, and says nothing of clients that were killed."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Connection(BaseHTTPRequestHandler):
    """One client's connection: passes requests to the hub, and replies back."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # buffered: headers and body are sent in one packet

    def __init__(self, *arguments: Any, hub: HubServer) -> None:
        self.hub = hub
        super().__init__(*arguments)

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        with contextlib.suppress(OSError):  # the client has left
            super().finish()

    def serve(self) -> None:
        reply, fault = self.hub.reply_to(self.command, self.path, self.headers, self._read_body())
        ending: Ending = "answer"
        if fault is not None:
            time.sleep(fault.seconds)
            ending = fault.ending
        if ending != "answer":
            self.close_connection = True
            if ending == "silence":
                self.hub.ended.wait()
            elif ending == "reset":
                reset(self.connection)
            elif ending == "cut":
                self.wfile.write(b"HTTP/1.1 20")
            return
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_GET = do_HEAD = do_POST = do_PUT = serve  # noqa: N815

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def log_message(self, format: str, *arguments: object) -> None:
        """Logs nothing: HubServer.requests has all requests."""


def answer(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    body = json.dumps(value).encode()
    return Reply(status=status, body=body, headers={"Content-Type": "application/json", **(headers or {})})


def require_user(request: Request, *, code: str = "") -> User:
    if request.user is None:
        raise HubError(401, "Invalid username or password.", code=code)
    return request.user


def find_repo(server: HubServer, request: Request) -> Repo:
    """Returns the repo of the path. Raises RepoNotFound if there is none that this user may see."""
    repo = server.repos.get(f"{request.groups['kind'] or 'models'}/{request.groups['name']}")
    if repo is None or (repo.private and not (request.user and request.user.may_read(repo.namespace))):
        raise HubError(404, "Repository not found", code="RepoNotFound")
    return repo


def find_writable_repo(server: HubServer, request: Request) -> Repo:
    """Returns the repo like find_repo(). Raises an error 401 without a token, and 403 without the right to write.

    The client turns a 401 on a repo into RepositoryNotFoundError by itself only over https; over http it needs the code.
    """
    user = require_user(request, code="RepoNotFound")
    repo = find_repo(server, request)
    if not user.may_write(repo.namespace):
        raise HubError(403, "Authorization error.")
    return repo


def whoami(server: HubServer, request: Request) -> Reply:
    user = require_user(request)
    orgs = [{"type": "org", "name": name, "fullname": name, "roleInOrg": role} for name, role in user.orgs.items()]
    token = {"displayName": f"{user.name}-{user.role}", "role": user.role, "createdAt": "2026-01-01T00:00:00.000Z"}
    auth = {"type": "access_token", "accessToken": token}
    return answer({"type": "user", "name": user.name, "fullname": user.name, "orgs": orgs, "auth": auth})


def create_repo(server: HubServer, request: Request) -> Reply:
    user = require_user(request)
    kind = f"{request.json.get('type') or 'model'}s"
    namespace = request.json.get("organization") or user.name
    if kind not in ("models", "datasets"):
        raise HubError(501, f"This double of the Hub does not hold {kind}")
    if not user.may_write(namespace):
        raise HubError(403, f'You don\'t have the rights to create a {kind[:-1]} under the namespace "{namespace}"')
    is_private = request.json.get("visibility") == "private" or bool(request.json.get("private"))
    repo = Repo(kind=kind, name=f"{namespace}/{request.json['name']}", private=is_private)
    url = f"{server.endpoint}/{repo.url_path}"
    if f"{kind}/{repo.name}" in server.repos:
        # With exist_ok, the client continues and reads the url
        return answer({"error": f"You already created this {kind[:-1]} repo", "url": url}, status=409)
    lines = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS)
    first = {".gitattributes": StoredFile(content=lines.encode(), is_lfs=False)}
    repo.add_commit("main", first, title="initial commit", message="", author=user.name)
    server.repos[f"{kind}/{repo.name}"] = repo
    return answer({"url": url, "name": repo.name})


def validate_card(server: HubServer, request: Request) -> Reply:
    """Warns if a card has no YAML block. Refuses a tab that indents a line of it, which YAML forbids."""
    block = re.match(r"---\s*\n(.*?\n)---", request.json["content"], re.DOTALL)
    warnings = [] if block else [{"message": "empty or missing yaml metadata in repo card"}]
    has_tab = block is not None and re.search(r"^ *\t", block[1], re.MULTILINE)
    errors = [{"message": "a tab indents a line of the metadata"}] if has_tab else []
    return answer({"errors": errors, "warnings": warnings}, status=400 if errors else 200)


def repo_info(server: HubServer, request: Request) -> Reply:
    repo = find_repo(server, request)
    commit = repo.find_commit(request.groups["revision"] or "main")
    files = sorted(commit.files.items())
    siblings = [{"rfilename": path, "size": len(file.content), "blobId": file.blob_id} for path, file in files]
    info: dict[str, Any] = {"id": repo.name, "author": repo.namespace, "sha": commit.oid, "siblings": siblings}
    info |= {"private": repo.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
    info |= {"createdAt": repo.commits[-1].date, "lastModified": commit.date}
    return answer(info)


def check_access(server: HubServer, request: Request) -> Reply:
    (find_writable_repo if request.groups["write"] else find_repo)(server, request)
    return answer({})


def describe_path(files: Mapping[str, StoredFile], path: str) -> dict[str, Any]:
    """Returns the entry of the tree for a file, or for a folder if `path` is not a file."""
    if path not in files:
        return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}
    file = files[path]
    entry = {"type": "file", "path": path, "oid": file.blob_id, "size": len(file.content)}
    if file.is_lfs:
        entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
    return entry


def list_tree(server: HubServer, request: Request) -> Reply:
    files = find_repo(server, request).find_commit(request.groups["revision"]).files
    prefix = f"{request.groups['path']}/" if request.groups["path"] else ""
    paths = {path for path in files if path.startswith(prefix)}
    if prefix and not paths:
        raise HubError(404, f"{request.groups['path']} does not exist", code="EntryNotFound")
    folders = {str(folder) for path in paths for folder in PurePosixPath(path).parents} - {"."}
    paths |= {folder for folder in folders if folder.startswith(prefix)}
    is_recursive = request.query.get("recursive") == "true"
    listed = [path for path in sorted(paths) if is_recursive or "/" not in path.removeprefix(prefix)]
    return answer([describe_path(files, path) for path in listed])


def list_paths(server: HubServer, request: Request) -> Reply:
    files = find_repo(server, request).find_commit(request.groups["revision"]).files
    paths = parse_qs(request.body.decode())["paths"]
    known = [path for path in paths if any(name == path or name.startswith(f"{path}/") for name in files)]
    return answer([describe_path(files, path) for path in known])


def list_refs(server: HubServer, request: Request) -> Reply:
    branches = find_repo(server, request).branches.items()
    refs = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid} for name, oid in branches]
    return answer({"branches": refs, "converts": [], "tags": [], "pullRequests": []})


def list_commits(server: HubServer, request: Request) -> Reply:
    entries = []
    for commit in find_repo(server, request).list_commits(request.groups["revision"]):
        entry = {"id": commit.oid, "title": commit.title, "message": commit.message, "date": commit.date}
        entries.append(entry | {"authors": [{"user": commit.author}]})
    return answer(entries)


def create_branch(server: HubServer, request: Request) -> Reply:
    repo = find_writable_repo(server, request)
    branch = request.groups["branch"]
    if branch in repo.branches:
        raise HubError(409, f"Reference already exists: {branch}")
    repo.branches[branch] = repo.find_commit(request.json.get("startingPoint", "main")).oid
    return answer({})


def preupload(server: HubServer, request: Request) -> Reply:
    """Answers for each file how to send it, and the hash of the existing one, so that the client skips equal files."""
    repo = find_writable_repo(server, request)
    head = repo.find_commit(request.groups["revision"])
    plans = []
    for file in request.json["files"]:
        name = PurePosixPath(file["path"]).name
        is_lfs = file["size"] >= LFS_MIN_BYTES or any(fnmatch(name, pattern) for pattern in LFS_PATTERNS)
        plan = {"path": file["path"], "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False}
        if file["path"] in head.files:
            plan["oid"] = head.files[file["path"]].etag
        plans.append(plan)
    return answer({"files": plans, "commitOid": head.oid})


def list_lfs_actions(server: HubServer, request: Request) -> Reply:
    repo = find_writable_repo(server, request)
    objects_url = f"{server.endpoint}/{repo.url_path}.git/info/lfs/objects"
    objects = []
    for requested in request.json["objects"]:
        entry = {"oid": requested["oid"], "size": requested["size"], "authenticated": True}
        if requested["oid"] not in repo.lfs_objects:
            upload, verify = {"href": f"{objects_url}/{requested['oid']}"}, {"href": f"{objects_url}/verify"}
            entry["actions"] = {"upload": upload, "verify": verify}
        objects.append(entry)
    return answer({"transfer": "basic", "objects": objects}, headers={"Content-Type": "application/vnd.git-lfs+json"})


def put_lfs_object(server: HubServer, request: Request) -> Reply:
    """Stores one object. It needs no token: on the Hub, the address is a signed one of the storage service."""
    repo = server.repos[f"{request.groups['kind'] or 'models'}/{request.groups['name']}"]
    if hashlib.sha256(request.body).hexdigest() != request.groups["oid"]:
        raise HubError(400, "The content does not have the announced sha256")
    repo.lfs_objects[request.groups["oid"]] = request.body
    return Reply()


def verify_lfs_object(server: HubServer, request: Request) -> Reply:
    content = find_writable_repo(server, request).lfs_objects.get(request.json["oid"])
    if content is None or len(content) != request.json["size"]:
        raise HubError(400, "The object has not arrived completely")
    return answer({})


def commit_files(server: HubServer, request: Request) -> Reply:
    """Commits to a branch, all operations or none. If no file changes, returns the head without a commit."""
    repo = find_writable_repo(server, request)
    branch = request.groups["revision"]
    if request.query.get("create_pr"):
        raise HubError(501, "This double of the Hub has no pull requests")
    head = repo.find_commit(branch)
    header, *operations = [json.loads(line) for line in request.body.split(b"\n") if line]
    if header["value"].get("parentCommit") not in (None, head.oid):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    files = dict(head.files)
    for operation in operations:
        apply_operation(repo, files, operation["key"], operation["value"])
    if files != head.files:
        title, message = header["value"]["summary"], header["value"]["description"]
        head = repo.add_commit(branch, files, title=title, message=message, author=require_user(request).name)
    url = f"{server.endpoint}/{repo.url_path}/commit/{head.oid}"
    return answer({"success": True, "commitOid": head.oid, "commitUrl": url, "hookOutput": ""})


def apply_operation(repo: Repo, files: dict[str, StoredFile], key: str, value: Mapping[str, str]) -> None:
    """Applies one line of a commit to `files`, in place."""
    path = value["path"]
    if key == "file":
        files[path] = StoredFile(content=base64.b64decode(value["content"]), is_lfs=False)
    elif key == "lfsFile" and value["oid"] in repo.lfs_objects:
        files[path] = StoredFile(content=repo.lfs_objects[value["oid"]], is_lfs=True)
    elif key == "lfsFile":
        raise HubError(400, f"An LFS pointer pointed to a file that does not exist. Offending file: {path}")
    elif key == "deletedFile" and path in files:
        del files[path]
    elif key == "deletedFolder" and any(name.startswith(f"{path.rstrip('/')}/") for name in files):
        for name in [name for name in files if name.startswith(f"{path.rstrip('/')}/")]:
            del files[name]
    else:
        raise HubError(404, f"A file with this name doesn't exist: {path} ({key})", code="EntryNotFound")


def resolve_file(server: HubServer, request: Request) -> Reply:
    """Answers one file of one revision, or the part of it in the Range header, without a redirect."""
    commit = find_repo(server, request).find_commit(request.groups["revision"])
    file = commit.files.get(request.groups["path"])
    headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    if file is None:
        raise HubError(404, "Entry not found", code="EntryNotFound", headers=headers)
    headers |= {"ETag": f'"{file.etag}"', "Content-Type": "application/octet-stream"}
    if file.is_lfs:
        headers |= {"X-Linked-ETag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
    requested = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    if requested is None:
        return Reply(body=file.content, headers=headers)
    size = len(file.content)
    start = int(requested[1]) if requested[1] else max(0, size - int(requested[2]))
    stop = min(size, int(requested[2]) + 1) if requested[1] and requested[2] else size
    if start >= size:
        raise HubError(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return Reply(status=206, body=file.content[start:stop], headers=headers)


REPO_API = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+(?:/[^/]+)?)"
REPO_PAGE = r"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+(?:/[^/]+)?)"
LFS_OBJECTS = REPO_PAGE + r"\.git/info/lfs/objects"
REVISION = r"(?P<revision>[^/]+)"

# The first pattern that matches the entire path answers. HEAD has the routes of GET.
ROUTES: tuple[tuple[str, str, Callable[[HubServer, Request], Reply]], ...] = (
    ("GET", "/api/whoami-v2", whoami),
    ("POST", "/api/repos/create", create_repo),
    ("POST", "/api/validate-yaml", validate_card),
    ("GET", f"{REPO_API}/auth-check(?P<write>/write)?", check_access),
    ("GET", f"{REPO_API}/tree/{REVISION}(?:/(?P<path>.+))?", list_tree),
    ("POST", f"{REPO_API}/paths-info/{REVISION}", list_paths),
    ("GET", f"{REPO_API}/refs", list_refs),
    ("GET", f"{REPO_API}/commits/{REVISION}", list_commits),
    ("POST", f"{REPO_API}/branch/(?P<branch>[^/]+)", create_branch),
    ("POST", f"{REPO_API}/preupload/{REVISION}", preupload),
    ("POST", f"{REPO_API}/commit/{REVISION}", commit_files),
    ("GET", f"{REPO_API}(?:/revision/{REVISION})?", repo_info),
    ("POST", f"{LFS_OBJECTS}/batch", list_lfs_actions),
    ("POST", f"{LFS_OBJECTS}/verify", verify_lfs_object),
    ("PUT", f"{LFS_OBJECTS}/(?P<oid>[0-9a-f]{{64}})", put_lfs_object),
    ("GET", f"{REPO_PAGE}/resolve/{REVISION}/(?P<path>.+)", resolve_file),
)
