// What the C library keeps of freed memory, so that a server at rest occupies what it needs.
#pragma once

namespace quern {

// Once, before threads are started.
void bound_freed_memory();

// Gives what is kept back to the system; the next allocations cost page faults.
void give_back_freed_memory();

}  // namespace quern
