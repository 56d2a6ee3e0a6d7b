-- Orthanc sends each new ultrasound object to the node. What comes back, SEG and SR, stays.
function OnStoredInstance(instanceId, tags, metadata, origin)
  if tags['Modality'] == 'US' then
    SendToModality(instanceId, 'node')
  end
end
