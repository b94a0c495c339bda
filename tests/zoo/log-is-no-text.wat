;; Logs what is not UTF-8, at a level that there is not.
;; serves
(func $plan (param i32 i32) (result i32)
    (call $log (i32.const 0) (i32.const 77) (i32.const 4096) (i32.const 6))
    (call $half_b))
(data (i32.const 4096) "\ff\fe\00\c3\28\80")
