;; A mixture with a module twice.
;; plan: pick 1 names module 0 a second time
(func $plan (param i32 i32) (result i32)
    (call $answer_fixed (i32.const 0) (i32.const 8192) (i32.const 2) (i32.const 0)) (i32.const 0))
