// unaware.hpp - a library that knows nothing of tasks
#pragma once

#if defined(__GNUC__)
#define UNAWARE extern "C" __attribute__((visibility("default")))
#endif

// Each waits a while, in another way, and says 0 when all went well: it has
// read what came, slept its time.
UNAWARE int unaware_read(int fd);
UNAWARE int unaware_read_into_known_room(int fd);
UNAWARE int unaware_poll(int fd);
UNAWARE int unaware_sleep();

// Each call takes a lock of the library's, and holds it while it sleeps. Says 0
// when it was alone.
UNAWARE int unaware_sleep_alone();
