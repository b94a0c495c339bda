;; Refuses its parameters.
;; start: not with me
(func $init (param i32) (result i32)
    (call $error (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 4096) (i32.const 11)) (i32.const 4))
(data (i32.const 4096) "not with me")
