#!/usr/bin/env python3
"""What a backup of CouchDB is measured against, and the data for it. Each command gets the server's URL.

    bare.py make URL DATABASE DOCUMENTS      fills a database
    bare.py change URL DATABASE DOCUMENTS    gives so many of its documents a new revision
    bare.py read URL DATABASE [FILE]         fetches everything over 4 connections, and throws it away (or keeps it)
    bare.py write URL DATABASE FILE          writes what was kept over 4 connections
"""

import base64, hashlib, http.client, json, queue, random, sys, threading, urllib.parse

CONNECTIONS, TOGETHER, PAGE = 4, 500, 4000


class Server:
    def __init__(self, url):
        url = urllib.parse.urlsplit(url)
        self.http = http.client.HTTPConnection(url.hostname, url.port or 5984)
        login = f"{urllib.parse.unquote(url.username or '')}:{urllib.parse.unquote(url.password or '')}"
        self.headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if url.username:
            self.headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()

    def ask(self, method, path, body=None):
        self.http.request(method, path, body, self.headers)
        answer = self.http.getresponse()
        content = answer.read()
        if answer.status >= 300:
            sys.exit(f"{method} {path}: {answer.status} {content[:500]}")
        return content


def side_by_side(url, produce, consume):
    """Gives what `produce` yields to `consume`, which has a connection of its own each time it runs."""
    waiting, failed = queue.Queue(2 * CONNECTIONS), []

    def work():
        server = Server(url)
        while (item := waiting.get()) is not None:
            if not failed:
                try:
                    consume(server, item)
                except BaseException as e:
                    failed.append(e)

    threads = [threading.Thread(target=work) for _ in range(CONNECTIONS)]
    [t.start() for t in threads]
    for item in produce:
        waiting.put(item)
    [waiting.put(None) for _ in threads]
    [t.join() for t in threads]
    if failed:
        raise failed[0]


def post(database, new_edits=False):
    def write(server, documents):
        head = b'{"docs":[' if new_edits else b'{"new_edits":false,"docs":['
        answer = json.loads(server.ask("POST", f"/{database}/_bulk_docs", head + b",".join(documents) + b"]}"))
        if any("error" in row for row in answer):
            sys.exit(f"a document is refused: {answer}")

    return write


WORDS = "amber basin cedar delta ember fjord grove haven inlet jetty knoll ledge marsh north ocean plain quarry ridge".split()


def revision(document, *history):
    names = [hashlib.md5(f"{document['_id']} {h}".encode()).hexdigest() for h in reversed(history)]
    document["_rev"] = f"{len(names)}-{names[0]}"
    document["_revisions"] = {"start": len(names), "ids": names}
    return json.dumps(document, separators=(",", ":")).encode()


def documents(count):
    """Of 1,000 documents 50 are deleted, 10 in conflict, 7 with a small attachment; 4 have a large one."""
    some = random.Random(7)
    for i in range(count):
        text = " ".join(some.choices(WORDS, k=some.randrange(60, 190)))
        document = {"_id": f"{some.getrandbits(64):016x}-{i}", "number": i, "price": some.random() * 100, "text": text,
                    "tags": some.sample(WORDS, 3), "owner": {"name": some.choice(WORDS), "since": some.randrange(10**12)}}
        if i % 20 == 3:
            yield revision({"_id": document["_id"], "_deleted": True}, "a", "b")
        elif i % 100 == 4:
            yield revision(dict(document, side="left"), "a", "b")
            yield revision(dict(document, side="right"), "a", "c")
        else:
            size = 12_000_000 if i % (count // 4) == 5 else some.randrange(2_000, 20_000) if i % 143 == 6 else 0
            if size:
                kind = some.choice(["image/jpeg", "text/plain"])
                data = some.randbytes(size) if kind == "image/jpeg" else " ".join(some.choices(WORDS, k=size // 6)).encode()
                document["_attachments"] = {"file": {"content_type": kind, "data": base64.b64encode(data).decode()}}
            yield revision(document, "a")


def batches(all):
    some, size = [], 0
    for document in all:
        some.append(document)
        size += len(document)
        if len(some) == TOGETHER or size > 1 << 20:
            yield some
            some, size = [], 0
    if some:
        yield some


def make(url, database, count):
    Server(url).ask("PUT", f"/{database}")
    side_by_side(url, batches(documents(int(count))), post(database))


def pages(url, database):
    server, since = Server(url), "0"
    while True:
        query = f"style=all_docs&limit={PAGE}&seq_interval={PAGE}&since={urllib.parse.quote(since)}"
        page = json.loads(server.ask("GET", f"/{database}/_changes?{query}"))
        yield page["results"]
        since = page["last_seq"] if isinstance(page["last_seq"], str) else str(page["last_seq"])
        if len(page["results"]) < PAGE:
            return


def change(url, database, count):
    rows = [row for page in pages(url, database) for row in page if len(row["changes"]) == 1 and not row.get("deleted")]
    some = random.Random(8).sample(rows, int(count))
    server = Server(url)
    for start in range(0, len(some), TOGETHER):
        asked = json.dumps({"docs": [{"id": row["id"]} for row in some[start:start + TOGETHER]]})
        answer = json.loads(server.ask("POST", f"/{database}/_bulk_get", asked))
        found = [one["ok"] for result in answer["results"] for one in result["docs"]]
        for document in found:
            document["changed"] = document.get("changed", 0) + 1
        post(database, True)(server, [json.dumps(document).encode() for document in found])


def read(url, database, kept=None):
    out, turn = open(kept, "wb") if kept else None, threading.Lock()

    def questions():
        for rows in pages(url, database):
            for start in range(0, len(rows), TOGETHER):
                some = [{"id": row["id"], "rev": c["rev"]} for row in rows[start:start + TOGETHER] for c in row["changes"]]
                yield json.dumps({"docs": some}).encode()

    def fetch(server, question):
        answer = server.ask("POST", f"/{database}/_bulk_get?revs=true&attachments=true", question)
        if out:
            found = [one["ok"] for result in json.loads(answer)["results"] for one in result["docs"]]
            lines = [json.dumps(document, separators=(",", ":")).encode() + b"\n" for document in found]
            with turn:
                out.writelines(lines)

    side_by_side(url, questions(), fetch)


def write(url, database, kept):
    Server(url).ask("PUT", f"/{database}")
    with open(kept, "rb") as lines:
        side_by_side(url, batches(line.rstrip(b"\n") for line in lines), post(database))


if __name__ == "__main__":
    {"make": make, "change": change, "read": read, "write": write}[sys.argv[1]](*sys.argv[2:])
