;; A mixture of what is not there.
;; plan: pick 0 names module 4294967295, which is no candidate
(func $plan (param i32 i32) (result i32) (call $fixed (i32.const -1) (f32.const 1)))
