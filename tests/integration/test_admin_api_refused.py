"""What is stored and can't be used: nobody is offered it, nothing of it is lost, and it can be seen and mended."""

from __future__ import annotations

import os

from ota_hook.bootstrap import _sweep
from ota_hook.model import DocumentKind
from tests.integration.admin_service import Admin


async def test_the_package_of_a_firmware_that_can_not_be_used_is_not_swept(admin: Admin) -> None:
    """Whatever the reason is: it may be mended, and then the package must be there."""
    await admin.create_type()
    await admin.create_type("DV")
    listed = await admin.create_firmware("1.1", devices=["d1"])
    unreadable = await admin.create_firmware("1.2", tags=["x"])
    of_a_broken_type = await admin.create_firmware("1.3", device_type="DV", tags=["x"])
    deleted = await admin.create_firmware("1.4", tags=["x"])
    await admin.api.delete(f"/firmware/{deleted['id']}")
    orphan = admin.packages / deleted["id"]
    orphan.write_bytes(b"left by a kill")
    for path in admin.packages.iterdir():
        os.utime(path, (1, 1))
    (digests,) = [key async for key in admin.redis.scan_iter(match=f"{admin.keys.prefix}:*:digests")]
    await admin.redis.delete(digests)
    await admin.redis.hset(admin.keys.documents(DocumentKind.FIRMWARE), unreadable["id"], "{")
    await admin.redis.hset(admin.keys.documents(DocumentKind.DEVICE_TYPE), "DV", "{")
    async with admin.restarted() as catalogue:
        await _sweep(admin.context.packages, catalogue)  # type: ignore[arg-type]
        assert len(catalogue.refused) == 4
    assert admin.files() == {listed["id"], unreadable["id"], of_a_broken_type["id"]}
