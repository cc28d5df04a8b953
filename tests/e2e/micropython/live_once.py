"""One life of the example device, from power-on to reboot or end: NAME PORT FOLDER EXAMPLE over-http|over-mqtt."""

import sys

name, port, folder, example, way = sys.argv[1:]
sys.path[:0] = [example, __file__.rpartition("/")[0]]

import ota_device  # noqa: E402

ota_device.ANSWER_S = 5
ota_device.PAUSE_S = 0.05
ota_device.PIECE_BYTES = 1000
device = ota_device.Device(name, "127.0.0.1", int(port), over_mqtt=way == "over-mqtt", folder=folder)
print("rebooting" if ota_device.live_once(device, stay_s=0.5) else "current")
