;; Says no in bytes that are not UTF-8.
;; plan: the router failed: �
(func $plan (param i32 i32) (result i32)
    (call $error (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 4096) (i32.const 3))
    (i32.const 4))
(data (i32.const 4096) "\ff\ff\ff")
