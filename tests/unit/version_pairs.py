"""Versions as vendors write them, in the order that `auto` (and where said, `semver`) gives them. Data only.

A chain is one line: `older < newer`, `one = another`, as long as it likes.
"""

from __future__ import annotations

from typing import Final


def read_chains(lines: str) -> list[list[tuple[str, str]]]:
    """Of each chain, its members as ("<" or "=", version); the sign is towards the member before, "" for the first."""
    chains = []
    for line in lines.strip().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        chain = []
        for place, newer in enumerate(line.split(" < ")):
            first, *equals = newer.split(" = ")
            chain.append(("<" if place else "", first))
            chain += [("=", equal) for equal in equals]
        chains.append(chain)
    return chains


AUTO: Final = read_chains(
    """
# the grammar's own
1.0a0 < 1.0a1 < 1.0rc1.dev2 < 1.0rc1 < 1.0 < 1.0a < 1.0b < 1.0.1
1.0.0-alpha < 1.0.0-alpha.1 < 1.0.0-alpha.beta < 1.0.0-beta < 1.0.0-beta.2 < 1.0.0-beta.11 < 1.0.0-rc.1 < 1.0.0
1.0.0-rc9 < 1.0.0-rc10 < 1.0.0 < 1.0.0-hotfix < 1.0.1
1.0.0 < 1.0.0-4-gabc123 < 1.0.1
1.0.0 < 1.0.0+4 < 1.0.0+5 < 1.0.1
V2.0.0_B03 < V2.0.0_B12
V100R001 < V100R001C00SPC100 < V100R001C00SPC200 < V100R001C10 < V100R002C00
0.9.8z < 0.9.8za < 0.9.8zb < 0.9.9
2024.08.08 < 2024.8.9
GD32_V1.0.2 < GD32_V1.0.11
9 < 10
1.0 = 1.0.0 = v1
1.0-dev < 1.0-snapshot = 1.0-nightly < 1.0-alpha < 1.0-beta < 1.0-pre = 1.0-preview < 1.0-rc < 1.0
1.0dev1 < 1.0snapshot1 = 1.0nightly1 < 1.0alpha1 = 1.0a1 < 1.0beta1 = 1.0b1 < 1.0pre1 = 1.0preview1 < 1.0rc1 < 1.0

# SemVer §11 and the forms of its grammar
1.0.0 < 2.0.0 < 2.1.0 < 2.1.1
1.0.0-alpha < 1.0.0
1.0.0-0.3.7 = 1.0.0.0.3.7
1.0.0-alpha.0 < 1.0.0-alpha.0.beta
1.1.2+meta-valid < 1.1.2-prerelease+meta < 1.1.3
1.0.0-alpha+001 < 1.0.0+21AF26D3---117B344092BD < 1.0.0+20130313144700
99999999999999999999999.999999999999999999.9 < 99999999999999999999999.999999999999999999.99999999999999999

# the plain ones of microcontrollers
1.0.0 < 1.0.8 < 1.0.9 < 1.0.10 < 1.1.5 < 1.10.0
0 = 0.0 = 0.0.0 = v0 < 0.0.1 < 0.1 < 1
7 < 7.1 < 7.9 < 7.10
001 = 1 < 002 < 010 = 10
1_2_3 = 1.2.3 = 1-2-3 = 1/2/3 = v1.2.3 = V1.2.3 = ver1.2.3 = Version 1.2.3 < 1_2_4
V1.0 < V1.1 < V2.0
FW_1.0 < FW_1.1 < FW_1.10
MCU-V1.02 < MCU-V1.03 < MCU-V1.10
app_1.0.0.bin < app_1.0.1.bin
HW2_FW1.9 < HW2_FW1.10 < HW3_FW1.0
STM32F407_v1.4 < STM32F407_v1.12
sw1.2.3 < sw1.2.4
1.2.3a < 1.2.3b < 1.2.3c < 1.2.4
1.01 = 1.1 < 1.02 < 1.2.1

# four and more numbers
1.0.0 < 1.0.0.1 < 1.0.0.1234 < 1.0.0.1235 < 1.0.1 = 1.0.1.0
10.0.19041.1 < 10.0.19041.264 < 10.0.22621.1
4.0.0.98 < 4.0.0.100
1.2.3.4.5 < 1.2.3.4.6 < 1.2.3.5
0.0.0.9 < 0.0.1.0

# dates
2023.12.31 < 2024.1.1 < 2024.01.02 < 2024.10.1
2024.08.08 = 2024.8.8
20231231 < 20240101 < 20240101.1 < 20240101.2 < 20240102
2024-01-31 < 2024-02-01
FW20240101 < FW20240115
1.0.0-20240101 < 1.0.0-20240115 < 1.0.1-20231231
24.04 < 24.04.1 < 24.10
240101-1200 < 240101-1830 < 240102-0001
1.0.0+20240101 < 1.0.0+20240102
2024-01-31T10:00:00Z < 2024-01-31T10:00:01Z

# Python and its tools (PEP 440's own chain)
1.0.dev456 < 1.0a1 < 1.0a2.dev456 < 1.0a12.dev456 < 1.0a12 < 1.0b1.dev456 < 1.0b2 < 1.0b2.post345.dev456 < 1.0b2.post345
1.0b2.post345 < 1.0rc1.dev456 < 1.0rc1 < 1.0 < 1.0+abc.5 < 1.0+abc.7 < 1.0+5 < 1.0.post456.dev34 < 1.0.post456 < 1.0.15
1.0.15 < 1.1.dev1
1.2.3 < 1.2.4.dev5+gabc1234 < 1.2.4

# git describe
v1.2.3 < v1.2.3-1-gdeadbee < v1.2.3-14-g2414721 < v1.2.3-14-g2414721-dirty < v1.2.4
v1.2.3-rc1 < v1.2.3-rc1-5-gabc1234 < v1.2.3-rc2 < v1.2.3
v1.2.3 < v1.2.3-dirty < v1.2.4

# Linux kernels
6.1-rc1 < 6.1-rc8 < 6.1 < 6.1.1 < 6.1.10 < 6.2-rc1
5.15.0-78-generic < 5.15.0-101-generic
4.9.118-sun8i < 4.9.119-sun8i < 4.14.0-sun8i
5.10.110-rockchip-rk3588 < 5.10.160-rockchip-rk3588
2.6.32.9 < 2.6.32.10 < 2.6.33
6.6.0-rc3-next-20230929 < 6.6.0-rc4 < 6.6

# ESP-IDF, ESP-AT, Arduino
v5.1-dev-992-gaf28c1fa21 < v5.1-dev-1626-g4bc762621d < v5.1-beta1 < v5.1-rc1 < v5.1 < v5.1.1 < v5.2-dev-1-g0123abc
v4.4 < v4.4-dirty < v4.4.1 < v4.4.7 < v5.0-beta1 < v5.0-rc1 < v5.0
2.2.0.0 < 2.2.1.0 < 2.4.0.0
1.0.6 < 2.0.0-alpha1 < 2.0.0-rc1 < 2.0.0 < 2.0.14 < 3.0.0-alpha3 < 3.0.0-rc1 < 3.0.0

# OpenWrt, U-Boot, Buildroot, Yocto, Zephyr
19.07.10 < 21.02.0-rc1 < 21.02.0-rc2 < 21.02.0 < 21.02.7 < 22.03.0-rc1 < 22.03.5 < 23.05.0
r7897-9d401013fc < r7976-4d65b1dfd5 < r16325-88151b8303
U-Boot 2023.07-rc6 < U-Boot 2023.07 < U-Boot 2023.07.02 < U-Boot 2023.10
2021.02 < 2021.02.1 < 2021.02.10 < 2021.05-rc1 < 2021.05
kirkstone-4.0.9 < kirkstone-4.0.10
v3.5.0-rc1 < v3.5.0-rc2 < v3.5.0 < v3.5.99 < v3.6.0-rc1

# Android and phones
Android 8.1.0 < Android 9 < Android 10
android-13.0.0_r1 < android-13.0.0_r9 < android-13.0.0_r30 < android-14.0.0_r1
QP1A.190711.019 < QP1A.190711.020 < QQ1A.191205.008
11.0.0.150 < 11.0.0.168 < 12.0.0.1
V12.5.9.0.RKHMIXM < V12.5.10.0.RKHMIXM < V13.0.1.0.SKHMIXM

# Huawei and other networks' gear
V200R005C00 < V200R005C00SPC500 < V200R005C10 < V200R019C00SPC500 < V200R019C10SPC500 < V200R021C00SPC100
V300R018C10SPC110 < V300R018C10SPC120
5.170 V200R007C00SPC500 < 5.170 V200R010C00SPC600
15.2(4)M6 < 15.2(4)M11 < 15.2(7)E1
12.4R3-S2 < 12.4R3-S10 < 12.4R4
7.1.045 < 7.1.075
9.3(9) < 9.3(10)
6.49.7 < 7.0beta3 < 7.0rc1 < 7.0 < 7.1.5 < 7.10beta5 < 7.10

# modems: Quectel, SIMCom, u-blox, Nordic, Sierra, Telit
EC25EFAR06A03M4G < EC25EFAR06A08M4G < EC25EFAR06A11M4G < EC25EFAR07A01M4G
BG96MAR02A07M1G < BG96MAR02A10M1G < BG96MAR03A06M1G
BG96MAR02A07M1G_01.012.01.012 < BG96MAR02A07M1G_01.016.01.016
EG91NAXGAR07A01M4G < EG91NAXGAR07A03M4G
LE20B03SIM7600M22 < LE20B04SIM7600M22
L0.0.00.00.05.06 < L0.0.00.00.05.12
mfw_nrf9160_1.2.7 < mfw_nrf9160_1.3.5 < mfw_nrf9160_1.3.10
SWI9X30C_02.24.05.06 < SWI9X30C_02.33.03.00
20.00.522 < 20.00.525 < 20.01.000
A7670M7_V1.11.1 < A7670M7_V1.11.2
1318B04SIM800C24 < 1418B05SIM800C24

# meters, cameras, vehicles, industrial controllers
V5.5.53_180730 < V5.5.82_190909 < V5.5.800_210628
2.800.0000000.16.R < 2.800.0000000.25.R < 2.820.0000000.1.R
B12.04 < B12.10 < B13.01
SW 4.02.01 < SW 4.02.02 < SW 4.10.00
R01.02.03 < R01.02.10
1.4.20-P1 < 1.4.20-P2 < 1.4.20-P10 < 1.4.21
3.1.4p1 < 3.1.4p2 < 3.1.5
8.9p1 < 9.0p1 < 9.3p2
1.1.1 < 1.1.1a < 1.1.1k < 1.1.1w < 3.0.0-alpha1 < 3.0.0-beta2 < 3.0.0

# words
1.0-SNAPSHOT < 1.0
1.0.0-nightly.20240101 < 1.0.0-nightly.20240102 < 1.0.0
1.0.0-preview.1 < 1.0.0-preview.2 < 1.0.0-rc.1
1.0.0-beta.1-hotfix < 1.0.0-beta.2
1.0.0-beta < 1.0.0-beta.0 < 1.0.0-beta.1 < 1.0.0-beta.x
1.0.0-rc1.dev1 < 1.0.0-rc1.snapshot < 1.0.0-rc1 < 1.0.0-rc1.1 < 1.0.0-rc1.alpha < 1.0.0-rc1.fix
1.0.0 < 1.0.0-customer < 1.0.0-factory < 1.0.0-patch1 < 1.0.0-patch2 < 1.0.0-patch10 < 1.0.0.1
1.0.hotfix.0.2 < 1.hotfix.2 = 1.0.0.hotfix.2 = 1-0-hotfix2 < 1.0.1
v.rc1 < v1.rc1 < 1
ver-x1 < ver-y1 < version-x1
release-1.2 < release-1.3-rc1 < release-1.3
1.0-Final < 1.0-ga < 1.0-sp1 < 1.0.1
1.0 < 1.0-m1 < 1.0-m2
V2.0.0_A01 < V2.0.0_B01 < V2.0.0 < V2.0.0_C01
1.0.0A < 1.0.0B < 1.0.0C

# build parts
1.0.0 = 1.0.0+ < 1.0.0+rc1 < 1.0.0+0 = 1.0.0+0.0 < 1.0.0+x < 1.0.0+1 < 1.0.0+1-2 < 1.0.0+1.3
1.0.0-rc1 < 1.0.0-rc1+5 < 1.0.0-rc1+11 < 1.0.0-rc2 < 1.0.0
1.0.0+a1b2c3d < 1.0.1+0000000
1.0.0+1+2 = 1.0.0+1.2 < 1.0.0+1+3

# other alphabets and odd characters separate
1.0版本2 = 1.0.2 < 1.0版本3
版本1.2 = v1.2 < 版本1.3
固件V1.2.3 = 1.2.3 < 固件V1.2.4
1.2\u00a0beta = 1.2beta < 1.2
"""
)

SEMVER: Final = read_chains(
    """
1.0.0 < 2.0.0 < 2.1.0 < 2.1.1
1.0.0-alpha < 1.0.0-alpha.1 < 1.0.0-alpha.beta < 1.0.0-beta < 1.0.0-beta.2 < 1.0.0-beta.11 < 1.0.0-rc.1 < 1.0.0
1.0.0-alpha < 1.0.0
1.0.0 = 1.0.0+1 = 1.0.0+build.5 < 1.0.1
1.0.0-rc.1 = 1.0.0-rc.1+exp.sha.5114f85 < 1.0.0
1.0.0-0 < 1.0.0-1 < 1.0.0-9 < 1.0.0-10 < 1.0.0-- < 1.0.0-A < 1.0.0-RC < 1.0.0-a < 1.0.0-rc10 < 1.0.0-rc9
1.0.0-a < 1.0.0-a.0 < 1.0.0-a.0.0 < 1.0.0-a.1 < 1.0.0-a.a < 1.0.0-a- < 1.0.0-ab
1.0.0-0A < 1.0.0-1A < 1.0.0-A
0.0.4 < 1.2.3 < 10.20.30 < 18446744073709551615.0.0 < 18446744073709551616.0.0
1.0.0-18446744073709551615 < 1.0.0-18446744073709551616
"""
)

SEMVER_INVALID: Final = (
    # the list beside the regular expression of semver.org
    "1",
    "1.2",
    "1.2.3-0123",
    "1.2.3-0123.0123",
    "1.1.2+.123",
    "+invalid",
    "-invalid",
    "-invalid+invalid",
    "-invalid.01",
    "alpha",
    "alpha.beta",
    "alpha.beta.1",
    "alpha.1",
    "alpha+beta",
    "alpha_beta",
    "alpha.",
    "alpha..",
    "beta",
    "1.0.0-alpha_beta",
    "-alpha.",
    "1.0.0-alpha..",
    "1.0.0-alpha..1",
    "1.0.0-alpha...1",
    "01.1.1",
    "1.01.1",
    "1.1.01",
    "1.2.3.DEV",
    "1.2-SNAPSHOT",
    "1.2.31.2.3----RC-SNAPSHOT.12.09.1--..12+788",
    "1.2-RC-SNAPSHOT",
    "-1.0.3-gamma+b7718",
    "+justmeta",
    "9.8.7+meta+meta",
    "9.8.7-whatever+meta+meta",
    # and others
    "v1.0.0",
    "V1.0.0",
    "1.0.0-",
    "1.0.0+",
    "1.0.0-+1",
    "1.0.0-a+",
    "1.0.0.0",
    "1..0",
    ".1.0.0",
    "1.0.0.",
    "1,0,0",
    "1.0.0-é",
    "1.0.0+é",
    "１.0.0",
    "1.0.0-٣",
)

PEP440_DIFFERS: Final = (
    # one, sign here, sign of PEP 440, another
    ("1.0a", ">", "<", "1.0"),
    ("1.0b", ">", "<", "1.0"),
    ("1.0c1", ">", "<", "1.0"),
    ("1.0pre2", "<", ">", "1.0rc1"),
    ("1.0-preview2", "<", ">", "1.0-rc1"),
    ("1.0-1", "=", "<", "1.0.1"),
    ("1.0-10", ">", "<", "1.0.9"),
    ("1!0.5", "<", ">", "2.0"),
    ("1.0.0-alpha", "<", "=", "1.0.0-alpha.0"),
    ("1.0rc", "<", "=", "1.0rc0"),
    ("1.0.dev", "<", "=", "1.0.dev0"),
    ("1.0-r1", ">", "=", "1.0-post1"),
    ("1.0+1", "=", "<", "1.0+1.0"),
    ("1.0+rc9", "<", ">", "1.0+rc10"),
)

DEBIAN_DIFFERS: Final = (
    # one, sign here, sign of dpkg, another
    ("1.0", "=", "<", "1.0.0"),
    ("1.0-rc1", "<", ">", "1.0"),
    ("1.0alpha", "<", ">", "1.0"),
    ("1.0a1", "<", ">", "1.0"),
    ("1.0-snapshot", "<", ">", "1.0"),
    ("1.2dev1", "<", ">", "1.2"),
    ("1.0~1", ">", "<", "1.0"),
    ("1.0-1", "=", "<", "1.0.1"),
    ("1.0-10", ">", "<", "1.0.9"),
    ("1.0B", ">", "<", "1.0a"),
    ("1.0Beta1", ">", "<", "1.0alpha2"),
    ("1.0_rc1", "<", ">", "1.0.1"),
    ("1.0-a", "=", "<", "1.0a"),
    ("1.0.0-rc.1", "=", ">", "1.0.0-rc1"),
    ("1.2.3snapshot1", "<", ">", "1.2.3rc1"),
    ("1:0.5", "<", ">", "2.0"),
)
