"""Stand-ins for GPUs that this machine lacks, at the narrowest point.

NVIDIA: a library with NVML's C interface, compiled here, which the real nvidia-ml-py loads. AMD: the
kernel's files below another root, and harmless device files (``/dev/null``'s numbers).
"""

from __future__ import annotations

import os
import secrets
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

#: What nvidia-ml-py calls, with NVML's own signatures (NVML API reference). Its answers come from
#: the environment, so that a test writes no C.
_NVML = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef int R;                       /* nvmlReturn_t */
typedef struct gpu { int index, slot; } *D;  /* nvmlDevice_t: opaque to callers */
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } P;
typedef struct { char old[16]; unsigned domain, bus, device, id, sub; char bus_id[32]; } PCI;
typedef struct { unsigned long long total, free, used; } M;
enum { OK = 0, NO_DRIVER = 9, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6, SMALL = 7, MISMATCH = 18 };
static struct gpu gpus[16], parts[16][7];
static const char *get(const char *name, const char *other) {
  const char *v = getenv(name); return v ? v : other; }
static int count(void) { return atoi(get("FAKE_GPUS", "0")); }
static int divided(int n) { return atoi(get("FAKE_MIG", "-1")) == n; }
R nvmlInitWithFlags(unsigned f) { (void)f; int e = atoi(get("FAKE_INIT", "0"));
  for (int i = 0; i < 16; i++) { gpus[i] = (struct gpu){i, -1};
    for (int j = 0; j < 7; j++) parts[i][j] = (struct gpu){i, j}; }
  return e; }
R nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(R r) { return r == MISMATCH ? "Driver/library version mismatch" : "An error"; }
R nvmlSystemGetDriverVersion(char *v, unsigned n) { snprintf(v, n, "550.54.15"); return OK; }
R nvmlSystemGetCudaDriverVersion(int *v) { *v = 12040; return OK; }
R nvmlDeviceGetCount_v2(unsigned *n) { *n = (unsigned)count(); return OK; }
R nvmlDeviceGetHandleByIndex_v2(unsigned i, D *d) {
  if ((int)i >= count()) return INVALID; *d = &gpus[i]; return OK; }
static void uuid(D d, char *u, unsigned n) {
  if (d->slot < 0) snprintf(u, n, "GPU-%d0000000-1111-2222-3333-444444444444", d->index);
  else snprintf(u, n, "MIG-%d%d000000-1111-2222-3333-444444444444", d->index, d->slot); }
R nvmlDeviceGetUUID(D d, char *u, unsigned n) { uuid(d, u, n); return OK; }
R nvmlDeviceGetHandleByUUID(const char *u, D *d) { char mine[96];
  for (int i = 0; i < count(); i++) { uuid(&gpus[i], mine, sizeof mine);
    if (!strcmp(u, mine)) { *d = &gpus[i]; return OK; }
    for (int j = 0; j < 7; j++) { uuid(&parts[i][j], mine, sizeof mine);
      if (!strcmp(u, mine)) { *d = &parts[i][j]; return OK; } } }
  return NOT_FOUND; }
R nvmlDeviceGetName(D d, char *v, unsigned n) {
  snprintf(v, n, d->slot < 0 ? "NVIDIA H100 80GB HBM3" : "NVIDIA H100 80GB HBM3 MIG 1g.10gb"); return OK; }
R nvmlDeviceGetMinorNumber(D d, unsigned *m) { *m = (unsigned)d->index; return OK; }
R nvmlDeviceGetPciInfo_v3(D d, PCI *p) { memset(p, 0, sizeof *p);
  snprintf(p->bus_id, sizeof p->bus_id, "00000000:%02X:00.0", d->index + 1); return OK; }
R nvmlDeviceGetMemoryInfo(D d, M *m) {
  m->total = (d->slot < 0 ? 80ull : 10ull) << 30; m->free = m->total; m->used = 0; return OK; }
R nvmlDeviceGetMigMode(D d, unsigned *now, unsigned *then) {
  if (getenv("FAKE_OLD")) return UNSUPPORTED;
  *now = *then = (unsigned)divided(d->index); return OK; }
R nvmlDeviceGetMaxMigDeviceCount(D d, unsigned *n) { (void)d; *n = 7; return OK; }
R nvmlDeviceGetMigDeviceHandleByIndex(D d, unsigned i, D *m) {
  if (i > 1) return NOT_FOUND; *m = &parts[d->index][i]; return OK; }
R nvmlDeviceGetGpuInstanceId(D d, unsigned *n) { *n = (unsigned)d->slot + 7; return OK; }
R nvmlDeviceGetComputeInstanceId(D d, unsigned *n) { (void)d; *n = 0; return OK; }
static R users(const char *name, D d, unsigned *n, P *p) {
  const char *v = get(name, "");
  int at = -1, pid = 0;
  if (sscanf(v, "%d:%d", &at, &pid) != 2 || at != d->index) { *n = 0; return OK; }
  if (*n < 1) { *n = 1; return SMALL; }
  *n = 1; p[0] = (P){(unsigned)pid, 3ull << 30, 0xFFFFFFFF, 0xFFFFFFFF}; return OK; }
R nvmlDeviceGetComputeRunningProcesses_v3(D d, unsigned *n, P *p) { return users("FAKE_USER", d, n, p); }
R nvmlDeviceGetMPSComputeRunningProcesses_v3(D d, unsigned *n, P *p) { return users("FAKE_MPS", d, n, p); }
R nvmlDeviceGetGraphicsRunningProcesses_v3(D d, unsigned *n, P *p) { return users("FAKE_DRAWS", d, n, p); }
"""


def fake_nvml(directory: Path) -> dict[str, str]:
    """Compile the library; return the variables with which a program finds it first."""
    directory.mkdir(parents=True, exist_ok=True)
    source = directory / "nvml.c"
    source.write_text(_NVML)
    library = directory / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    return {"LD_LIBRARY_PATH": str(directory)}


@dataclass(frozen=True)
class FakeAmd:
    """Roots below which an AMD driver's files stand.

    Attributes:
        number: of the first GPU, another one in each test: the engine is everybody's.
    """

    sys: Path
    dev: Path
    proc: Path
    number: int

    def uuid(self, index: int) -> str:
        """Return what names a GPU."""
        return f"GPU-{self.number + index:016x}"


def fake_amd(root: Path, gpus: int = 2) -> FakeAmd:
    """Make the files of a machine with a processor and AMD GPUs; needs mknod(2)."""
    fake = FakeAmd(root / "sys", root / "dev", root / "proc", secrets.randbits(56) << 6)
    nodes = fake.sys / "class/kfd/kfd/topology/nodes"
    (fake.dev / "dri").mkdir(parents=True)
    null = Path("/dev/null").stat().st_rdev
    _device(fake.dev / "kfd", null, 44)
    _node(nodes / "0", "simd_count 0\ncpu_cores_count 64\n", 0)
    for number in range(gpus):
        node = nodes / str(number + 1)
        properties = (
            f"simd_count 304\nunique_id {fake.number + number}\ndrm_render_minor {128 + number}\n"
            f"location_id {0xC300 + (number << 8)}\ndomain 0\nvendor_id 4098\nodd line here\n"
        )
        _node(node, properties, 1000 + number)
        bank = node / "mem_banks/0"
        bank.mkdir(parents=True)
        (bank / "properties").write_text("heap_type 1\nsize_in_bytes 206141652992\nflags 0\n")
        _device(fake.dev / f"dri/renderD{128 + number}", null, 109)
    version = fake.sys / "module/amdgpu/version"
    version.parent.mkdir(parents=True)
    version.write_text("6.8.5\n")
    return fake


def _node(node: Path, properties: str, gpu: int) -> None:
    node.mkdir(parents=True)
    (node / "properties").write_text(properties)
    (node / "gpu_id").write_text(f"{gpu}\n")
    (node / "name").write_text("aqua vanjaram\n" if gpu else "\n")


def _device(path: Path, number: int, group: int) -> None:
    os.mknod(path, stat.S_IFCHR | 0o660, number)
    path.chmod(0o660)
    os.chown(path, 0, group)
