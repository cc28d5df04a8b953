"""Over-the-air firmware upgrades for fleets on the EMQX MQTT broker."""
