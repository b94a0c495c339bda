;; Shared memory could be waited on without an end.
;; load: shared
(memory (export "memory") 1 2 shared)
