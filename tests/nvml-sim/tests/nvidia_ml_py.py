"""An independent client, NVIDIA's own nvidia-ml-py, partitions a simulated GPU.

Usage: nvidia_ml_py.py LIBRARY, where LIBRARY is a node's libnvidia-ml.so.1 and its GPU 0 an H100-80GB without
instances. Enables MIG, lists profiles and placements, makes 3g+2g+1g+1g, reads UUIDs and memory, fails on overlap, and
destroys everything. Any surprise ends it with a traceback; success prints "ok".
"""

import ctypes
import os
import sys


def load(library):
    """Imports pynvml so that it opens `library`: it asks the dynamic linker for libnvidia-ml.so.1."""
    os.environ["LD_LIBRARY_PATH"] = os.path.dirname(library)
    real = ctypes.CDLL
    ctypes.CDLL = lambda name, *args, **kw: real(library if "libnvidia-ml" in str(name) else name, *args, **kw)
    import pynvml

    pynvml.nvmlInit()
    ctypes.CDLL = real
    return pynvml


def expect(nvml, code, call, *args):
    """`call` must raise the NVML error `code`."""
    try:
        call(*args)
    except nvml.NVMLError as error:
        assert error.value == code, f"{call.__name__}: {error}, expected code {code}"
        return
    raise AssertionError(f"{call.__name__} succeeded, expected code {code}")


def placements(nvml, gpu, profile):
    count = ctypes.c_uint(0)
    nvml.nvmlDeviceGetGpuInstancePossiblePlacements(gpu, profile, None, ctypes.byref(count))
    room = (nvml.c_nvmlGpuInstancePlacement_t * count.value)()
    nvml.nvmlDeviceGetGpuInstancePossiblePlacements(gpu, profile, room, ctypes.byref(count))
    return [(place.start, place.size) for place in room]


def profiles(nvml, gpu):
    """Profile name to info, by enumerating until INVALID_ARGUMENT."""
    found = {}
    for index in range(64):
        try:
            info = nvml.nvmlDeviceGetGpuInstanceProfileInfo(gpu, index, version=2)
        except nvml.NVMLError_NotSupported:
            continue
        except nvml.NVMLError_InvalidArgument:
            break
        name = info.name if isinstance(info.name, str) else info.name.decode()
        found[name.removeprefix("MIG ")] = info
    return found


def create(nvml, gpu, profile, compute_profile):
    gi = nvml.nvmlDeviceCreateGpuInstance(gpu, profile.id)
    ci = nvml.nvmlGpuInstanceCreateComputeInstance(gi, compute_profile)
    return gi, ci


def text(value):
    return value if isinstance(value, str) else value.decode()


def number(value):
    """nvidia-ml-py forgets to unwrap some of its results."""
    return getattr(value, "value", value)


def main():
    nvml = load(sys.argv[1])
    assert nvml.nvmlDeviceGetCount() >= 1
    gpu = nvml.nvmlDeviceGetHandleByIndex(0)
    assert text(nvml.nvmlDeviceGetName(gpu)) == "NVIDIA H100 80GB HBM3"
    assert nvml.nvmlDeviceGetCudaComputeCapability(gpu) in ([9, 0], (9, 0))
    print("pci", text(nvml.nvmlDeviceGetPciInfo(gpu).busId), "uuid", text(nvml.nvmlDeviceGetUUID(gpu)))

    expect(nvml, 3, nvml.nvmlDeviceCreateGpuInstance, gpu, 19)
    assert nvml.nvmlDeviceSetMigMode(gpu, 1) == 0
    assert list(nvml.nvmlDeviceGetMigMode(gpu)) == [1, 1]

    known = profiles(nvml, gpu)
    ids = {name: info.id for name, info in known.items()}
    assert ids == {"1g.10gb": 19, "1g.10gb+me": 20, "1g.20gb": 15, "2g.20gb": 14, "3g.40gb": 9, "4g.40gb": 5, "7g.80gb": 0}
    assert known["3g.40gb"].multiprocessorCount == 60 and known["3g.40gb"].memorySizeMB == 40448
    assert placements(nvml, gpu, 9) == [(0, 4), (4, 4)]
    assert placements(nvml, gpu, 19) == [(start, 1) for start in range(7)]
    assert number(nvml.nvmlDeviceGetGpuInstanceRemainingCapacity(gpu, 19)) == 7

    # The indices of compute profiles with 1, 2 and 3 slices are 0, 1 and 2.
    made = [create(nvml, gpu, known[name], index) for name, index in [("3g.40gb", 2), ("2g.20gb", 1), ("1g.10gb", 0), ("1g.10gb", 0)]]
    taken = sorted((nvml.nvmlGpuInstanceGetInfo(gi).placement.start, nvml.nvmlGpuInstanceGetInfo(gi).placement.size) for gi, _ in made)
    assert all(a + n <= b for (a, n), (b, _) in zip(taken, taken[1:])), taken

    uuids = []
    for gi, ci in made:
        mig = nvml.nvmlComputeInstanceGetInfo(ci).device
        assert number(nvml.nvmlDeviceIsMigDeviceHandle(mig)) == 1
        assert number(nvml.nvmlDeviceGetGpuInstanceId(mig)) == nvml.nvmlGpuInstanceGetInfo(gi).id
        memory = nvml.nvmlDeviceGetMemoryInfo(mig)
        attributes = nvml.nvmlDeviceGetAttributes(mig)
        uuids.append(text(nvml.nvmlDeviceGetUUID(mig)))
        print(uuids[-1], text(nvml.nvmlDeviceGetName(mig)), memory.total >> 20, "MiB,", attributes.multiprocessorCount, "SM")
        assert memory.total >> 20 >= attributes.memorySizeMB > 0
        assert text(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByUUID(uuids[-1].encode()))) == uuids[-1]
    assert len(set(uuids)) == 4 and all(uuid.startswith("MIG-") for uuid in uuids)
    assert number(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)) == 7
    walked = [text(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, i))) for i in range(4)]
    assert sorted(walked) == sorted(uuids)
    expect(nvml, 6, nvml.nvmlDeviceGetMigDeviceHandleByIndex, gpu, 4)

    place = nvml.c_nvmlGpuInstancePlacement_t(*taken[0])
    size_of = {1: 19, 2: 14, 4: 9}
    expect(nvml, 23, nvml.nvmlDeviceCreateGpuInstanceWithPlacement, gpu, size_of[taken[0][1]], ctypes.byref(place))
    expect(nvml, 23, nvml.nvmlDeviceCreateGpuInstance, gpu, 0)

    for gi, ci in made:
        expect(nvml, 19, nvml.nvmlGpuInstanceDestroy, gi)
        nvml.nvmlComputeInstanceDestroy(ci)
        nvml.nvmlGpuInstanceDestroy(gi)
        expect(nvml, 2, nvml.nvmlGpuInstanceGetInfo, gi)
    assert number(nvml.nvmlDeviceGetGpuInstanceRemainingCapacity(gpu, 19)) == 7
    assert nvml.nvmlDeviceSetMigMode(gpu, 0) == 0
    nvml.nvmlShutdown()
    print("ok")


if __name__ == "__main__":
    main()
