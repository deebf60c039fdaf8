// Loaded before Azurite: ends the process when the one that started it is gone, however it ended.
process.stdin.on("end", () => process.exit(0)).on("error", () => process.exit(0)).resume();
process.stdin.unref(); // it must not hold up an end that Azurite is asked for and has saved its data before
